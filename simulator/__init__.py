"""A stand-in for the gateway: real HTTP, real MP4s, every answer and fault of the contract.

It knows nothing of `longtake`: it checks independently and strictly what a client does.
"""

from simulator.faultproxy import FaultProxy
from simulator.server import Simulator, serve
from simulator.world import SimulatorSettings

__all__ = ["FaultProxy", "Simulator", "SimulatorSettings", "serve"]
