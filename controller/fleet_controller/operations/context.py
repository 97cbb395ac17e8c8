"""What every operation works with: the inventory as it is now, warm connections, memory, and work that is under way."""

from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.running import RunningWork
from fleet_controller.settings import Settings
from fleet_controller.state import StateDatabase
from fleet_controller.transport.pool import AgentPool
from fleet_inventory.base import InventoryError
from fleet_inventory.hosts import Host, Inventory, load_inventory
from fleet_inventory.patterns import PatternError, select


class FleetContext:
    """One per controller process. Made inside its event loop; `close` ends every connection."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = StateDatabase(settings.database_file)
        self.pool = AgentPool(settings.state_dir)
        self.running = RunningWork()
        self._inventory: tuple[tuple[int, int], Inventory] | None = None

    def inventory(self) -> Inventory:
        """hosts.yaml as it is now; read again only after it changed. Raises OperationError (usage)."""
        path = self.settings.hosts_file
        try:
            stamp = (path.stat().st_mtime_ns, path.stat().st_size)
        except OSError:
            stamp = (0, 0)
        if self._inventory is None or self._inventory[0] != stamp:
            try:
                self._inventory = (stamp, load_inventory(path))
            except InventoryError as error:
                raise OperationError("inventory", str(error), usage=True) from None
        return self._inventory[1]

    def select(self, pattern: str) -> tuple[Host, ...]:
        """The hosts that a pattern means. Raises OperationError (usage) where it means none."""
        inventory = self.inventory()
        try:
            return select(pattern, inventory.hosts.values())
        except PatternError as error:
            raise OperationError("no-such-host", str(error), usage=True) from None

    def warm_connections(self) -> int:
        """How many agents have an open channel."""
        return self.pool.warm_connections

    async def close(self) -> None:
        await self.running.close()
        await self.pool.close()
        self.database.close()
