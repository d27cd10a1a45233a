"""Results of `knet predict --results FOLDER` with COCO's own tools, which other viewers read too.

python examples/coco_viewer.py TRUTH.json FOLDER/instances.json IMAGES OUTPUT.png
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from pycocotools.coco import COCO

truth, results, images, output = sys.argv[1:]
coco = COCO(truth)
found = coco.loadRes(results)
image = coco.loadImgs(found.anns[1]["image_id"])[0]
plt.imshow(plt.imread(Path(images) / image["file_name"]))
best = [a for a in found.imgToAnns[image["id"]] if a["score"] >= 0.3]
found.showAnns(best)
plt.title(f"{image['file_name']}: {len(best)} of {len(found.imgToAnns[image['id']])} instances")
plt.axis("off")
plt.savefig(output)
