"""`knet app`: a page on this machine that shows what a model sees in a photo.

    serve(KNetPredictor.from_pretrained("folder"))

`build_app` gives the page alone, for a server of one's own. Both need the extra `app` (gradio).
"""

from knet.app.page import build_app
from knet.app.server import serve

__all__ = ["build_app", "serve"]
