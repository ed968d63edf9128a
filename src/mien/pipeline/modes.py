"""The modes of a reconstructor, and the settings that each of them uses."""

from __future__ import annotations

from dataclasses import dataclass

from mien.errors import ConfigError
from mien.fitting import DetailSettings, FitSettings
from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER

MODES = ("fit", "net", "auto")
"""How coefficients are found: by optimisation, by the encoder, or by optimisation from the encoder's prediction."""
DETAIL_MODES = ("fit", "net")
"""How the detail maps are found: by optimisation, or by the detail network."""


@dataclass(frozen=True)
class ModeSettings:
    """The settings of `Reconstructor` that depend on each other, checked together; it describes them."""

    mode: str
    detail: bool
    detail_mode: str | None
    refine_focal: bool
    encoder: str
    detail_network: str
    settings: FitSettings | None
    detail_settings: DetailSettings | None

    @property
    def detail_by_network(self) -> bool:
        """Whether the detail network makes the maps."""
        chosen = self.detail_mode or ("net" if self.mode == "net" else "fit")
        return self.detail and chosen == "net"

    def check(self) -> None:
        """Raise ConfigError for an unknown mode, or for a setting that the chosen modes do not use."""
        for name, value, choices in (("mode", self.mode, MODES), ("detail_mode", self.detail_mode, DETAIL_MODES)):
            if value is not None and value not in choices:
                raise ConfigError(f"{name}={value!r} is not a mode; choose one of {', '.join(choices)}.")
        fit_detail = self.detail and not self.detail_by_network
        # The one table of which setting is used when: name, whether it was given, where it is used, what to do.
        for name, given, used, advice in (
            ("encoder", self.encoder != DEFAULT_ENCODER, self.mode != "fit", "choose mode net or auto"),
            ("refine_focal", self.refine_focal, self.mode != "net", "choose mode fit or auto"),
            ("settings", self.settings not in (None, FitSettings()), self.mode != "net", "choose mode fit or auto"),
            ("detail_mode", self.detail_mode is not None, self.detail, "turn detail on"),
            ("detail_network", self.detail_network != DEFAULT_DETAIL, self.detail_by_network, "choose detail_mode net"),
            (
                "detail_settings",
                self.detail_settings not in (None, DetailSettings()),
                fit_detail,
                "choose detail_mode fit",
            ),
        ):
            if given and not used:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is not used with mode={self.mode!r}, detail={self.detail}, "
                    f"detail_mode={self.detail_mode!r}; {advice}, or leave {name} out."
                )
