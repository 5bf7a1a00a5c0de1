"""What is a net worth? Asked of any denoiser; knows no trainer."""
