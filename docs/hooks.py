"""For mkdocs: links out of docs/ lead to the repository, where these files are."""

import re


def on_page_markdown(markdown, page, config, files):
    """`../examples/train.py` becomes an address; `../methods.md` of docs/api/ stays."""
    if "/" in page.file.src_uri:
        return markdown
    return re.sub(r"\]\(\.\./", f"]({config.extra['social'][0]['link']}/blob/main/", markdown)
