"""The encoder, its refiner, the detail U-Net and their weights files."""

from mien.networks.detail_unet import DEFAULT_DETAIL as DEFAULT_DETAIL
from mien.networks.detail_unet import DetailNetwork as DetailNetwork
from mien.networks.detail_unet import load_detail as load_detail
from mien.networks.detail_unet import predict_maps as predict_maps
from mien.networks.detail_unet import save_detail as save_detail
from mien.networks.encoder import FaceEncoder as FaceEncoder
from mien.networks.encoder_file import DEFAULT_ENCODER as DEFAULT_ENCODER
from mien.networks.encoder_file import has_packaged_encoder as has_packaged_encoder
from mien.networks.encoder_file import load_encoder as load_encoder
from mien.networks.encoder_file import save_encoder as save_encoder
