"""Reports: HTML pages with figures, tables and images with their regions drawn."""
