"""Sources of the small Go programs that `binaries` builds; each is a main around released modules."""

from __future__ import annotations

ETCD = """package main

import (
\t"os"

\t"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
"""

# The released program has dozens of plugins and takes minutes to build; names of a cluster need these.
COREDNS = """package main

import (
\t"github.com/coredns/coredns/core/dnsserver"
\t"github.com/coredns/coredns/coremain"
\t_ "github.com/coredns/coredns/plugin/cache"
\t_ "github.com/coredns/coredns/plugin/errors"
\t_ "github.com/coredns/coredns/plugin/kubernetes"
)

func main() {
\tdnsserver.Directives = []string{"errors", "cache", "kubernetes"}
\tcoremain.Run()
}
"""

# Holds the namespaces of a pod, and reaps what is left in them.
PAUSE = """package main

import (
\t"os"
\t"os/signal"
\t"syscall"
)

func main() {
\tsignals := make(chan os.Signal, 8)
\tsignal.Notify(signals, syscall.SIGCHLD, syscall.SIGINT, syscall.SIGTERM)
\tfor received := range signals {
\t\tif received != syscall.SIGCHLD {
\t\t\treturn
\t\t}
\t\tfor {
\t\t\tif pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
\t\t\t\tbreak
\t\t\t}
\t\t}
\t}
}
"""
