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

# Signs by an authority in a Secret, for one namespace; the released program knows every issuer and cloud.
CERT_MANAGER = """package main

import (
\t"context"
\t"fmt"
\t"os"
\t"os/signal"
\t"syscall"

\t"github.com/cert-manager/cert-manager/pkg/controller"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
\t_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
\t_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
)

func run(kubeconfig, namespace string) error {
\tctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
\tdefer stop()
\tfactory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
\t\tKubeconfig: kubeconfig, Namespace: namespace, KubernetesAPIQPS: 50, KubernetesAPIBurst: 100,
\t})
\tif err != nil {
\t\treturn err
\t}
\troot, err := factory.Build()
\tif err != nil {
\t\treturn err
\t}
\tended := make(chan error)
\tfor name, make := range controller.Known() {
\t\tmade, err := make(factory)
\t\tif err != nil {
\t\t\treturn fmt.Errorf("%s: %w", name, err)
\t\t}
\t\tgo func() { ended <- made.Run(1, ctx) }()
\t}
\troot.SharedInformerFactory.Start(ctx.Done())
\troot.KubeSharedInformerFactory.Start(ctx.Done())
\troot.HTTP01ResourceMetadataInformersFactory.Start(ctx.Done())
\treturn <-ended
}

func main() {
\tif err := run(os.Args[1], os.Args[2]); err != nil {
\t\tfmt.Fprintln(os.Stderr, err)
\t\tos.Exit(1)
\t}
}
"""
