"""Small trained models, the data they are trained on, and the scripts that make and measure them."""
