"""The report as a page: `page.render(report)` gives one self-contained HTML file. No torch is needed to make it."""
