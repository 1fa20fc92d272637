"""A detector that comes from somebody else: it is installed beside the zoo, which knows nothing of it."""

from detector_zoo import DetectorInfo, hookimpl


@hookimpl
def register_detectors(register):
    register(
        DetectorInfo(
            name="ninth",
            summary="A stranger's statistic: log-odds of the mean green value",
            load="zoo_ninth.detector:Ninth",
        )
    )
