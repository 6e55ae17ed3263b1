"""Train LoRA on a family's tiny model and random latents, in the shape of diffusers' DreamBooth scripts.

It knows nothing of LayerSync. One seed gives one run, and a resumed run goes on as the whole one would have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, send_to_device, set_seed
from diffusers.optimization import get_scheduler
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from layersync_core.families.registry import load_tiny

WEIGHTS = "pytorch_lora_weights.safetensors"
TEXTS = {"family": "flux", "output_dir": "output", "mixed_precision": "no", "report_to": "tensorboard"}
NUMBERS = {"seed": 0, "learning_rate": 1e-2, "train_batch_size": 2, "max_train_steps": 3}
PERIODS = {"gradient_accumulation_steps": 1, "checkpointing_steps": 1000, "validation_steps": 1000}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {**TEXTS, **NUMBERS, **PERIODS}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--resume_from_checkpoint", type=Path)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--with_prior_preservation", action="store_true")
    args = parser.parse_args()
    output = Path(args.output_dir)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(project_dir=output, logging_dir=output / "logs"),
    )
    set_seed(args.seed)
    tiny = load_tiny(args.family)
    transformer = tiny.tiny_model().requires_grad_(False)
    for parameter in transformer.parameters():  # a modulation of zeros would make every block the identity
        parameter += 0.05 * torch.randn_like(parameter)
    copies = 1 + args.with_prior_preservation  # of the batch: the instances, and the images of their class
    conditions = send_to_device(tiny.example_inputs(transformer, copies * args.train_batch_size), accelerator.device)
    shape = conditions["hidden_states"].shape[1:]
    # Some models count time from 0 to 1, others to 1000.
    scale = 1 if conditions["timestep"].is_floating_point() and conditions["timestep"].max() <= 1 else 1000
    samples = torch.randn(4 * args.train_batch_size * args.gradient_accumulation_steps, copies, *shape)
    # The loader's own generator: making an iterator, after a resume too, must not move the one that draws the noise.
    loader = torch.utils.data.DataLoader(samples, args.train_batch_size, generator=torch.Generator())
    if args.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trainable = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.learning_rate)
    scheduler = get_scheduler("constant", optimizer)

    def save_hook(models: list, weights: list, folder: str) -> None:
        save_file(get_peft_model_state_dict(accelerator.unwrap_model(models[0])), Path(folder, WEIGHTS))
        weights.clear()

    def load_hook(models: list, folder: str) -> None:
        set_peft_model_state_dict(accelerator.unwrap_model(models.pop()), load_file(Path(folder, WEIGHTS)))

    accelerator.register_save_state_pre_hook(save_hook)
    accelerator.register_load_state_pre_hook(load_hook)
    transformer, optimizer, loader, scheduler = accelerator.prepare(transformer, optimizer, loader, scheduler)
    accelerator.init_trackers("like-diffusers", config={"seed": args.seed})

    def predict(noisy: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        return transformer(**conditions | {"hidden_states": noisy, "timestep": sigmas * scale, "return_dict": False})[0]

    @torch.no_grad()
    def validate() -> None:
        latents = torch.ones(copies * args.train_batch_size, *shape, device=accelerator.device)
        for sigma in (1.0, 0.5):
            latents = latents - 0.5 * predict(latents, torch.full((len(latents),), sigma, device=latents.device))
        accelerator.print(f"validation {latents.mean().item()!r}")

    step = 0
    if args.resume_from_checkpoint:
        accelerator.load_state(str(args.resume_from_checkpoint))
        step = int(args.resume_from_checkpoint.name.removeprefix("checkpoint-"))
    while step < args.max_train_steps:
        transformer.train()
        for clean in accelerator.skip_first_batches(loader, step * args.gradient_accumulation_steps % len(loader)):
            with accelerator.accumulate(transformer):
                clean = clean.swapaxes(0, 1).flatten(0, 1)
                noise, sigmas = torch.randn_like(clean), torch.rand(len(clean), device=clean.device)
                prediction = predict(torch.lerp(clean, noise, sigmas.view(-1, *[1] * len(shape))), sigmas)
                errors = (prediction.float() - (noise - clean)).square().chunk(copies)
                loss = sum(error.mean() for error in errors)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trainable, 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                step += 1
                if step % args.checkpointing_steps == 0:
                    accelerator.save_state(str(output / f"checkpoint-{step}"))
                if step % args.validation_steps == 0:
                    validate()
            # As in diffusers' scripts: each forward's loss, under the steps done so far.
            logs = {"loss": loss.detach().item(), "lr": scheduler.get_last_lr()[0]}
            accelerator.log(logs, step=step)
            accelerator.print(f"step {step} loss {logs['loss']!r}", flush=True)
            if step >= args.max_train_steps:
                break
    if accelerator.is_main_process:
        save_hook([transformer], [], str(output))
    accelerator.end_training()


if __name__ == "__main__":
    main()
