"""The net: one bidirectional Transformer, dense or mixture-of-experts by configuration. Knows only torch."""
