"""What is fixed on purpose, and why."""

from keras_nisp.channels.registry import fix_deliberately, named_layers, operations

fix_deliberately(
    "which works on the colors of an image",
    *named_layers("AugMix", "AutoContrast", "Equalization", "Solarization"),
    *named_layers("ContrastLimitedAdaptiveHistogramEqualization"),
    *named_layers("RandAugment"),
    *named_layers("RandomBrightness", "RandomColorDegeneration", "RandomColorJitter"),
    *named_layers("RandomContrast", "RandomGrayscale", "RandomHue", "RandomInvert"),
    *named_layers("RandomPosterization", "RandomSaturation"),
    *operations("image.rgb_to_grayscale", "image.rgb_to_hsv", "image.hsv_to_rgb", "image.ssim"),
    *operations("image.sobel_edges", "psnr"),
)
fix_deliberately("which mixes images of a batch", *named_layers("CutMix", "MixUp", "Mosaic"))
fix_deliberately("which works on bounding boxes", *named_layers("MaxNumBoundingBoxes"))
fix_deliberately("which runs layers of its own", *named_layers("Pipeline"))
fix_deliberately(
    "which turns values into indices",
    *named_layers("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing"),
    *named_layers("IntegerLookup", "StringLookup", "TextVectorization"),
    *operations("multi_hot", "bincount", "digitize", "searchsorted", "in_top_k"),
    *operations("histogram", "unravel_index", "nonzero", "isin"),
)
fix_deliberately(
    "which turns signals into spectra",
    *named_layers("MelSpectrogram", "STFTSpectrogram"),
    *operations("fft", "fft2", "ifft2", "irfft", "istft", "rfft", "stft", "extract_sequences"),
    multiplies=True,
)
fix_deliberately(
    "a layer that runs code of its own",
    *named_layers("FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper"),
    warns=True,
)
fix_deliberately(
    "which runs a function that it is given",
    *operations("associative_scan", "cond", "fori_loop", "jvp", "map", "scan", "switch"),
    *operations("vectorized_map", "while_loop"),
    multiplies=True,
)
fix_deliberately(
    "whose weights belong to no layer",
    *operations("conv", "conv_transpose", "depthwise_conv", "separable_conv"),
    multiplies=True,
)
fix_deliberately(
    "whose weights belong to no layer",
    *operations("batch_normalization", "layer_normalization", "rms_normalization"),
)
fix_deliberately(
    "which mixes channels by linear algebra",
    *operations("cdist", "cholesky", "cholesky_inverse", "corrcoef", "correlate", "cov", "cross"),
    *operations("det", "matrix_power"),
    *operations("eig", "eigh", "inv", "kron", "logdet", "lstsq", "lu_factor", "matrix_rank"),
    *operations("pinv", "qr", "slogdet", "solve", "solve_triangular", "svd"),
    multiplies=True,
)
fix_deliberately(
    "whose kernel is rounded by the mean of all its entries",
    *named_layers("TernaryDense"),
)
fix_deliberately(
    "whose product is not followed (use matmul or einsum)",
    *operations("dot", "inner", "outer", "tensordot", "vdot"),
    multiplies=True,
)
fix_deliberately(
    "which moves values depending on other values",
    *operations("argpartition", "scatter", "scatter_update", "select", "slice_update", "unique"),
    *operations("ctc_decode", "image.map_coordinates", "image.scale_and_translate"),
)
fix_deliberately(
    "which runs along the first axis, that of samples",
    *operations("segment_max", "segment_min", "segment_prod", "segment_sum"),
)
fix_deliberately(
    "which moves values in a way that is not followed",
    *operations("diag", "diagflat", "diagonal", "dsplit", "fold", "hsplit", "slice"),
    *operations(
        "image.extract_patches",
        "image.extract_patches_3d",
        "image.reconstruct_patches",
        "meshgrid",
        "rearrange",
        "trace",
        "tril",
        "triu",
    ),
    *operations("unfold", "vander", "view", "view_as_complex", "view_as_real", "vsplit"),
    *operations("polar", "trapezoid"),
)
fix_deliberately(
    "which computes a loss or a comparison",
    *operations("allclose", "binary_crossentropy", "categorical_crossentropy", "ctc_loss"),
    *operations("sparse_categorical_crossentropy"),
)
fix_deliberately(
    "which makes a tensor of numbers",
    *operations("arange", "array", "full", "geomspace", "linspace", "logspace", "ndim", "size"),
    *operations("bartlett", "blackman", "hamming", "hanning", "kaiser"),
)
