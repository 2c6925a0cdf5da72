"""Facts about accelerators, models, images and prices, each with its source."""
