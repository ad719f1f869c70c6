"""The ImageNet rows of both papers: prune a trained ResNet-50, with NISP or with C-SGD.

    python examples/imagenet.py nisp --data-dir DIR                row NISP-B (NISP-A: --ratio 0.15)
    python examples/imagenet.py csgd --data-dir DIR                row C-SGD-70, but see csgd_plan
    python examples/imagenet.py csgd --data-dir DIR --share 0.6 --weights out/.../csgd.keras

DIR is a TFDS data directory with imagenet2012. The third line continues from what the second one
wrote, as the authors of C-SGD do, from 70 over 60 to 50 % of the width. A run that was interrupted
resumes with the epoch that it was in: give the same command again. To try everything
on a few images and without trained weights:

    python examples/imagenet.py nisp --data-dir DIR --weights none --limit 64 --image-size 64 \
        --batch-size 16 --epochs 1
"""

import argparse
import os
import zlib
from math import ceil, floor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import models
import tensorflow as tf

import keras_nisp as kn

MOMENTUM, DECAY = 0.9, 1e-4
# What the papers report for ResNet-50. Losses of NISP are in points; C-SGD starts from 75.33.
PAPER = {
    ("nisp", 0.15): "FLOPs -27.31 %, parameters -27.12 %; loses 0.21 points of top-1",
    ("nisp", 0.25): "FLOPs -44.01 %, parameters -43.82 %; loses 0.89 points of top-1",
    ("csgd", 0.7): "FLOPs -36.75 % (--rounding floor); top-1 75.33 -> 75.27, top-5 92.56 -> 92.46",
    ("csgd", 0.6): "FLOPs -46.24 %; top-1 75.33 -> 74.93, top-5 92.56 -> 92.27",
    ("csgd", 0.5): "FLOPs -55.76 %; top-1 75.33 -> 74.54, top-5 92.56 -> 92.09",
}
ROUNDINGS = {"ceil": ceil, "floor": floor}
# Layers inside of the residual blocks of each of the four stages.
INTERNAL = {
    "resnet50": [f"conv{stage}_block*_[12]_conv" for stage in range(2, 6)],
    "resnet18": [f"stage{stage}_block*_1_conv" for stage in range(1, 5)],
}


def read(split, args, augment=False, limit=None) -> tf.data.Dataset:
    """Batches of images and labels, streamed from the disk."""
    import tensorflow_datasets as tfds

    limit = min(filter(None, (limit, args.limit)), default=None)
    try:
        data = tfds.load(
            "imagenet2012:5.*.*",
            data_dir=args.data_dir,
            split=split,
            download=False,
            as_supervised=True,
            shuffle_files=augment and limit is None,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except (AssertionError, FileNotFoundError, tfds.core.DatasetNotFoundError) as error:
        raise SystemExit(
            f"There is no imagenet2012 in {args.data_dir or 'the default directory of TFDS'}, and "
            "TFDS cannot download it: get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
            "image-net.org, put them into DIR/downloads/manual, run `tfds build imagenet2012 "
            "--data_dir DIR`, and pass --data-dir DIR."
        ) from error
    data = data.take(limit) if limit else data
    if augment:
        data = data.shuffle(10_000)  # of JPEG files, about 1 GB; decoded they would be six
    decode = random_crop if augment else centre_crop

    def prepare(jpeg, label):
        # The trained weights of Keras expect what Caffe did: BGR, minus the mean.
        image = decode(jpeg, args.image_size)
        return keras.applications.resnet.preprocess_input(image), label

    data = data.map(prepare, tf.data.AUTOTUNE, deterministic=not augment)
    return data.batch(args.batch_size).prefetch(tf.data.AUTOTUNE)


def centre_crop(jpeg, size):
    """The shorter side to 256 pixels, then the middle 224 of both (or in that proportion)."""
    image = tf.io.decode_jpeg(jpeg, channels=3)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    sides = tf.round(sides * (size * 256 / 224) / tf.reduce_min(sides))
    image = tf.image.resize(image, tf.cast(sides, tf.int32), antialias=True)
    return tf.image.resize_with_crop_or_pad(image, size, size)


def random_crop(jpeg, size):
    """A random part of random proportions, sometimes mirrored; only that part is decoded."""
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(jpeg),
        tf.zeros((1, 0, 4)),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], extent[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
    return tf.image.random_flip_left_right(tf.image.resize(image, (size, size)))


def network(args) -> keras.Model:
    """The model to be pruned: trained, from a file, or with fresh weights."""
    if args.weights not in ("imagenet", "none"):
        return keras.models.load_model(args.weights, compile=False)
    shape = (args.image_size, args.image_size, 3)
    if args.network == "resnet18":
        if args.weights == "imagenet":
            raise SystemExit("Keras has no trained ResNet-18: pass --weights FILE or none.")
        model = models.resnet(18, input_shape=shape)
    else:  # strides are on the first 1x1 convolution of a block, as in both papers
        resnet50 = keras.applications.ResNet50
        model = resnet50(weights=None, input_shape=shape, classifier_activation=None)
        if args.weights == "imagenet":  # which Keras gives for 224 pixels only
            model.set_weights(resnet50(classifier_activation=None).get_weights())
    # Probabilities in float32, with mixed precision, too.
    softmax = keras.layers.Activation("softmax", dtype="float32", name="probabilities")
    return keras.Model(model.input, softmax(model.output), name=args.network)


def copy_of(model) -> keras.Model:
    """The model without its optimizer, on the devices of the present strategy."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def compile_with(model, optimizer="sgd") -> keras.Model:
    metrics = [
        keras.metrics.SparseCategoricalAccuracy(name="top1"),
        keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5"),
    ]
    loss = keras.losses.SparseCategoricalCrossentropy()  # the networks end in softmax
    model.compile(optimizer, loss, metrics=metrics, jit_compile=False)
    return model


def show_accuracy(title, model, args) -> None:
    model = compile_with(copy_of(model))
    result = model.evaluate(read("validation", args), return_dict=True, verbose=0)
    print(f"{title}: top-1 {100 * result['top1']:.2f}, top-5 {100 * result['top5']:.2f}")


def show_plan(plan, args, amount) -> None:
    ours = f"FLOPs {-plan.flops_reduction:.2%}, parameters {-plan.params_reduction:.2%}"
    print(f"plan:  {ours.replace('%', ' %')}")
    if args.network == "resnet50":
        print(f"paper: {PAPER.get((args.command, amount), 'no such row')}")


def step_decay(rate, steps, epochs, drops, warmup=0):
    """A rate that rises by epochs of warm-up and is divided by 10 at `drops` of `epochs`."""
    rising = [rate * epoch / warmup for epoch in range(1, warmup)]
    falling = [rate * 0.1**drop for drop in range(len(drops) + 1)]
    boundaries = [steps * epoch // epochs for epoch in (*range(1, warmup), *drops)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rising + falling)


def train(model, optimizer, data, args, callbacks=()) -> keras.Model:
    """A trained copy; accuracy after each epoch is printed, and kept in log.csv.

    `optimizer` is a function, because with several GPUs its variables belong to the strategy.
    """
    # By settings, so that a trial that was interrupted does not become part of another run.
    settings = repr(sorted(vars(args).items())).encode()
    backup = args.folder / f"backup_{zlib.crc32(settings):08x}"
    callbacks = [
        *callbacks,
        keras.callbacks.CSVLogger(args.folder / "log.csv", append=backup.exists()),
        keras.callbacks.BackupAndRestore(backup),
    ]
    several = args.multi_gpu
    strategy = tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()
    with strategy.scope():
        model = compile_with(copy_of(model), optimizer())
    test = read("validation", args)
    model.fit(data, epochs=args.epochs, validation_data=test, callbacks=callbacks, shuffle=False)
    return model


def nisp_plan(model, calibration, args) -> kn.Plan:
    """The same ratio in every layer; scores of pruned neurons are not propagated further."""
    importance = kn.NISP(calibration, max_samples=args.calibration, propagate_pruned=False)
    return kn.plan_pruning(model, importance, ratio=args.ratio)


def nisp(args) -> None:
    """Prunes, repairs, fine-tunes at a tenth of the rate of the original training.

    The paper leaves open: epochs, batch size and schedule of fine-tuning, augmentation, and how
    many images rank the final responses. What is here for those is our choice.
    """
    model = network(args)
    show_accuracy("before", model, args)
    calibration = read("train", args, limit=args.calibration)
    plan = nisp_plan(model, calibration, args)
    show_plan(plan, args, args.ratio)
    plan.save(args.folder / "plan.json")
    small = kn.rebuild(model, plan)
    show_accuracy("pruned", small, args)
    kn.recalibrate(small, calibration, model, plan, batch_size=args.batch_size)
    show_accuracy("recalibrated", small, args)

    data = read("train", args, augment=True)
    steps, rate = args.epochs * len(data), 0.1 / 10 * args.batch_size / 256
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    if args.schedule == "step":
        schedule = step_decay(rate, steps, 3, drops=(1, 2))
    # Keras decays apart from momentum: ten times the value is the usual L2 penalty.
    decay = DECAY / (1 - MOMENTUM)
    small = train(
        small, lambda: keras.optimizers.SGD(schedule, MOMENTUM, weight_decay=decay), data, args
    )
    save(small, args.folder / "nisp.keras", "fine-tuned", args)


def csgd_plan(model, args) -> kn.Plan:
    """A share of the width inside of the residual blocks; what they add to stays.

    The authors' code rounds up. The paper's FLOPs are those of 0.7 rounded down, 0.6 rounded up.
    """
    widths = (64, 128, 256, 512)
    targets = {
        pattern: ROUNDINGS[args.rounding](args.share * width)
        for pattern, width in zip(INTERNAL[args.network], widths, strict=True)
    }
    return kn.plan_merging(model, widths=targets, seed=args.seed)


def csgd(args) -> None:
    """Trains with C-SGD and merges, with the settings of the authors' code; no fine-tuning."""
    model = network(args)
    show_accuracy("before", model, args)
    plan = csgd_plan(model, args)
    show_plan(plan, args, args.share)
    plan.save(args.folder / "plan.json")

    data = read("train", args, augment=True)
    steps = args.epochs * len(data)
    # Other numbers of epochs keep the proportions of 70.
    schedule = step_decay(3e-3 * args.batch_size / 256, steps, 70, drops=(30, 50, 60), warmup=5)
    # "reference": vectors have a tenth of the strength, and no decay. Layers without clusters
    # decay apart from momentum, ten times less than clustered kernels; the authors' code, by
    # its version, does not let them decay at all, or in full.
    settings = {"strength": args.strength, "nesterov": True, "weight_decay": DECAY}
    settings |= {"momentum": MOMENTUM, "preset": "reference"}
    forecast = plan.check(steps, schedule, **settings)
    print(forecast)
    if not (forecast.collapses or args.force):
        raise SystemExit("Pass more --epochs, a larger --strength, or --force, which loses some.")

    monitor = kn.CentripetalMonitor(plan)
    model = train(
        model, lambda: kn.CentripetalSGD(schedule, plan=plan, **settings), data, args, [monitor]
    )
    copy_of(model).save(args.folder / "unmerged.keras")
    # After an interruption the clusters are those with which training began.
    small = kn.rebuild(model, monitor.plan, force=args.force)
    save(small, args.folder / "csgd.keras", "merged", args)


def save(small, path, title, args) -> None:
    show_accuracy(title, small, args)
    copy_of(small).save(path)
    print(path)


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = [commands.add_parser(name) for name in ("nisp", "csgd")]
    for command, epochs in zip(parsers, (30, 70), strict=True):
        command.add_argument("--data-dir", help="TFDS data directory with imagenet2012")
        command.add_argument("--network", default="resnet50", choices=INTERNAL)
        command.add_argument("--weights", default="imagenet", help="or none, or a .keras file")
        command.add_argument("--epochs", type=int, default=epochs)
        command.add_argument("--batch-size", type=int, default=256, help="scales the rate, too")
        command.add_argument("--image-size", type=int, default=224)
        command.add_argument("--limit", type=int, help="so many images of each split, for a trial")
        command.add_argument("--mixed-precision", action="store_true", help="float16")
        command.add_argument("--multi-gpu", action="store_true", help="all GPUs of this machine")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, default=Path("out/imagenet"), help="folder")
    parsers[0].add_argument("--ratio", type=float, default=0.25, help="of channels, to be removed")
    parsers[0].add_argument("--calibration", type=int, default=5000, help="number of images")
    parsers[0].add_argument("--schedule", default="cosine", choices=("cosine", "step"))
    parsers[1].add_argument("--share", type=float, default=0.7, help="of channels, to be kept")
    parsers[1].add_argument("--rounding", default="ceil", choices=ROUNDINGS, help="of widths")
    parsers[1].add_argument("--strength", type=float, default=0.05)
    parsers[1].add_argument("--force", action="store_true", help="merge what is not identical")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    amount = args.ratio if args.command == "nisp" else args.share
    args.folder = args.out / f"{args.command}_{args.network}_{amount}"
    args.folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    if args.mixed_precision:
        keras.mixed_precision.set_global_policy("mixed_float16")
    {"nisp": nisp, "csgd": csgd}[args.command](args)


if __name__ == "__main__":
    main()
