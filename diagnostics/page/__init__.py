"""``report.html``: one file that opens anywhere, without network; jinja2 templates, charts as inline SVG."""
