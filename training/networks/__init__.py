"""Networks: the slice classifier with its LSTM, the U-Net with its loss."""
