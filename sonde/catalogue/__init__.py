"""WHAT EXISTS: models, devices, links, prices, efficiencies. Rows of data, each with source and date."""
