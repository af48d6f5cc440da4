"""A tenant router: every tenant has an adapter and a key of its own, and connections that no other tenant can use up."""

from collections import OrderedDict

import httpx


class TenantRouter:
    """`tenants`: name -> (adapter, key). Above `most_open` tenants, the least recently used one's connections close.
    Which adapters are loaded is the server's business: it has an LRU too, and knows which key may use which."""

    def __init__(self, url: str, tenants: dict[str, tuple[str, str]], most_open: int = 32) -> None:
        self.url, self.tenants, self.most_open = url, tenants, most_open
        self.clients: OrderedDict[str, httpx.Client] = OrderedDict()

    def ask(self, tenant: str, question: str, **options: object) -> str:
        """KeyError: no such tenant. httpx.HTTPStatusError: what the server refuses (401, 403, 404, 429, 503)."""
        adapter, key = self.tenants[tenant]
        headers = {"Authorization": f"Bearer {key}"}
        client = self.clients.pop(tenant, None) or httpx.Client(base_url=self.url, headers=headers)
        self.clients[tenant] = client
        self.close(self.most_open)
        body = {"model": adapter, "messages": [{"role": "user", "content": question}], **options}
        reply = client.post("/v1/chat/completions", json=body, timeout=120).raise_for_status()
        return str(reply.json()["choices"][0]["message"]["content"])

    def close(self, keep: int = 0) -> None:
        while len(self.clients) > keep:
            self.clients.popitem(last=False)[1].close()
