"""Money and carbon: dollars per hour of a replica, electricity, and grams of CO2."""

from __future__ import annotations

from sonde.catalogue.device import Device
from sonde.deployment.tree import Replica
from sonde.errors import InputError

JOULES_PER_KWH = 3.6e6


def hourly_cost(
    device: Device, replica: Replica, *, purchase: str = "on-demand", usd_per_device_hour: float | None = None
) -> float:
    """Return dollars per hour of one replica: the price of a device times its devices.

    `usd_per_device_hour` replaces the catalogue's price; a device that nobody sells by the hour (a phone) costs
    nothing but its electricity. Raises InputError where the price given is below zero.
    """
    price = device.price(purchase) if usd_per_device_hour is None else usd_per_device_hour
    if price is not None and not price >= 0:
        raise InputError("usd_per_device_hour", price, "must be zero or more")
    return (price or 0.0) * replica.devices


def electricity_usd(joules: float, usd_per_kwh: float, pue: float) -> float:
    """Return the dollars for `joules` drawn by devices: what the site draws for them, at its price per kWh."""
    return joules * pue / JOULES_PER_KWH * usd_per_kwh


def carbon_g(joules: float, carbon_g_per_kwh: float, pue: float) -> float:
    """Return the grams of CO2 for `joules` drawn by devices, at the grid's intensity."""
    return joules * pue / JOULES_PER_KWH * carbon_g_per_kwh
