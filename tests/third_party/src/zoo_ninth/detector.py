import numpy as np


class Ninth:
    def score(self, images):
        green = np.array([np.asarray(image)[..., 1].mean() for image in images])
        share = np.clip(green, 1, 254) / 255
        return np.log(share / (1 - share)).astype(np.float32)
