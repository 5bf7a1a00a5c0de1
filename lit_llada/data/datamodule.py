"""Where configs of version 0.1.0 find the text datamodule; new ones name ``lit_llada.DiffusionDataModule``."""

from lit_llada.data.text_datamodule import DiffusionDataModule as DiffusionDataModule
