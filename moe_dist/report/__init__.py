"""Report: metrics, latency, tables with the paper's figures beside ours, figures, and report.html."""
