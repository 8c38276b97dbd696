"""Multi-scale GMM-MoE (Şahin, Alpaslan, Hanbay: Electronics 2026)."""
