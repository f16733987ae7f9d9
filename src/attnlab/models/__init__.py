"""Models: the seams put together to families, and their size."""

from attnlab.models.bert import Bert
from attnlab.models.convolutional import ConvolutionalEncoder, ConvolutionalLanguageModel
from attnlab.models.convolutional_seq2seq import ConvolutionalSeq2Seq
from attnlab.models.encoder import Encoder
from attnlab.models.encoder_decoder import EncoderDecoder
from attnlab.models.gpt import GPT
from attnlab.models.language_model import LanguageModel
from attnlab.models.recurrent import RecurrentEncoder, RecurrentLanguageModel
from attnlab.models.recurrent_seq2seq import RecurrentSeq2Seq
from attnlab.models.seq2seq import Seq2Seq
from attnlab.models.size import Size, measure_size
from attnlab.models.t5 import T5, T5LanguageModel
from attnlab.models.vit import ViT

__all__ = [
    "GPT",
    "T5",
    "Bert",
    "ConvolutionalEncoder",
    "ConvolutionalLanguageModel",
    "ConvolutionalSeq2Seq",
    "Encoder",
    "EncoderDecoder",
    "LanguageModel",
    "RecurrentEncoder",
    "RecurrentLanguageModel",
    "RecurrentSeq2Seq",
    "Seq2Seq",
    "Size",
    "T5LanguageModel",
    "ViT",
    "measure_size",
]
