"""Models: the seams put together to families, and their size."""

from attnlab.models.base import Encoder, LanguageModel, Seq2Seq, Size, count_parameters, idle_parameters, measure_size
from attnlab.models.clip import CLIP
from attnlab.models.convolutional import ConvolutionalEncoder, ConvolutionalLanguageModel, ConvolutionalSeq2Seq
from attnlab.models.encoder_decoder import T5, EncoderDecoder, T5LanguageModel
from attnlab.models.ngpt import NGPT
from attnlab.models.recurrent import RecurrentEncoder, RecurrentLanguageModel, RecurrentSeq2Seq
from attnlab.models.transformer import GPT, Bert
from attnlab.models.vit import ViT
from attnlab.models.whisper import Whisper
from attnlab.whisper_tokens import WhisperTokens

__all__ = [
    "CLIP", "GPT", "NGPT", "T5", "Bert", "ConvolutionalEncoder", "ConvolutionalLanguageModel", "ConvolutionalSeq2Seq",
    "Encoder", "EncoderDecoder", "LanguageModel", "RecurrentEncoder", "RecurrentLanguageModel", "RecurrentSeq2Seq",
    "Seq2Seq", "Size", "T5LanguageModel", "ViT", "Whisper", "WhisperTokens", "count_parameters",
    "idle_parameters", "measure_size",
]  # fmt: skip
