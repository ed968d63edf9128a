"""Converts other projects' face models, and transfers faces from one topology to another.

    file ── reader ──► SourceModel ── registration of the packaged model ──► missing parts ──► MorphableModel

Parts that a model has are kept unchanged. Missing parts are completed by the rules of `completion`; each rule leaves a
note in the model.
"""

from mien.registration.completion import complete as complete
from mien.registration.nonrigid_icp import Registration as Registration
from mien.registration.nonrigid_icp import register as register
from mien.registration.transfer import Transfer as Transfer
from mien.registration.transfer import transfer as transfer
