"""The documentation site: pages generated at build time, and links that work on GitHub and on the site."""
