"""Gradients, residuals and sums on CUDA devices; only messages leave them. docs/cuda.md says what has been tested, and where.

local_device   which device is this rank's
why_on_the_host  why gradients would not stay there
DeviceExchange post_encode of docs/layers.md for arrays on a device, over another exchange
Home           moves the gradients of a worker of gtcbmuf.policy to a device
"""

from gtcbmuf.device.exchange import DeviceExchange, DeviceTicket
from gtcbmuf.device.home import Home
from gtcbmuf.device.vectors import DeviceVector
from gtcbmuf.device.which import local_device, why_on_the_host

__all__ = ["DeviceExchange", "DeviceTicket", "DeviceVector", "Home", "local_device", "why_on_the_host"]
