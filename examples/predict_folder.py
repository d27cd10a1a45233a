"""Every picture of a folder through a model: drawings, and what was found in each.

python examples/predict_folder.py MODEL FOLDER OUTPUT
"""

import sys

from knet.predict.run import predict_pictures
from knet.predictor import KNetPredictor

model, folder, output = sys.argv[1:]
done = predict_pictures(KNetPredictor.from_pretrained(model), [folder], output=f"{output}/")
for picture, found in done.found.items():
    print(f"{picture.name}: {found}")
sys.exit(bool(done.problems))
