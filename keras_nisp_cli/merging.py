"""`keras-nisp merge`."""

from pathlib import Path

import click

from keras_nisp_cli.loading import load_model, load_samples
from keras_nisp_cli.options import (
    AMOUNTS,
    FORCE,
    INPUT_SHAPE,
    PATH,
    SAMPLES_HELP,
    Command,
    Named,
    amount_options,
    check_ending,
    check_outputs,
    chosen_amount,
    data_options,
    grouped,
    limit_options,
    limits,
    model_options,
    parse_shape,
    with_model,
)

_files, _choice = grouped("Files"), grouped("What is merged")
_training = grouped("Training: says whether clusters will be identical in time")


@click.command(cls=Command)
@click.argument("model", type=PATH)
@_files("-o", "--output", type=PATH, required=True, help="The plan, .json.")
@_files("--report", "report_path", type=PATH, help="Draw the plan as an .html page.")
@amount_options
@_choice(
    "--clustering",
    type=Named(["kmeans", "activations", "even", "imbalanced"]),
    default="kmeans",
    show_default=True,
    help="Which channels become one: by kernels, by responses to --calibration, or neighbours.",
)
@_choice("--seed", type=click.IntRange(0), default=0, help="For k-means and sampling.")
@limit_options
@grouped("Data")(
    "--calibration",
    metavar="DATA",
    help=f"For activations, and widths by damage: {SAMPLES_HELP}",
)
@data_options
@_training("--steps", type=click.IntRange(1), help="Optimizer steps, of all epochs.")
@_training("--learning-rate", type=float, default=0.03, show_default=True)
@_training("--momentum", type=float, default=0.9, show_default=True)
@INPUT_SHAPE
@model_options
@FORCE
@click.pass_obj
def merge(console, model: Path, output: Path, report_path, force: bool, **options):
    """Plan which channels of MODEL C-SGD makes identical, to be merged without loss.

    Train MODEL with keras_nisp.CentripetalSGD and this plan, save it, and apply the plan to it.

    \b
    keras-nisp merge model.keras --flops 0.6 -o plan.json --steps 20000
    """
    amount = chosen_amount(options, tuple(name for name in AMOUNTS if name != "latency"))
    if options["clustering"] == "activations" and options["calibration"] is None:
        raise click.UsageError("--clustering activations looks at data: give --calibration.")
    check_ending(output, ".json")
    check_outputs(console, force, output, report_path)
    network = load_model(
        model, options["custom_objects"], options["unsafe"], console, compiled=True
    )
    samples = load_samples(network, options, "calibration", console)
    import keras_nisp as kn

    with console.watching() as verbose:
        plan = kn.plan_merging(
            network,
            budget=kn.Budget(**with_model(amount, options, console), **limits(options)),
            clustering=options["clustering"],
            calibration=samples,
            seed=options["seed"],
            input_shape=parse_shape(options["input_shape"]),
            verbose=verbose,
        )
    forecast = None
    if options["steps"] is not None:
        forecast = plan.check(options["steps"], options["learning_rate"], options["momentum"])
    plan.save(output)
    if report_path is not None:
        plan.report(report_path)
    console.say(plan.summary(console.wide))
    if forecast is not None:
        console.say(str(forecast))
    console.say(
        f"next: train with keras_nisp.CentripetalSGD(plan=keras_nisp.Plan.load('{output}'))"
    )
    console.next("keras-nisp", "apply", output, "TRAINED", "-o", "small.keras")
    console.result(
        {
            "output": str(output),
            "budget": plan.budget_text,
            "parameters": [plan.before.parameters, plan.after.parameters],
            "flops": [plan.before.flops, plan.after.flops],
            "widths": {row.layer: [row.channels, row.kept] for row in plan.creators},
            "collapses": None if forecast is None else forecast.collapses,
        }
    )
