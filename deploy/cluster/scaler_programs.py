"""Source of a small server of external metrics; `binaries` builds it for the tests of autoscalers.

It stands where prometheus-adapter does, on the same library, and reads the same rules: what a
HorizontalPodAutoscaler asks for becomes a query to Prometheus.
"""

from __future__ import annotations

EXTERNAL_METRICS = """package main

import (
\t"context"
\t"encoding/json"
\t"fmt"
\t"net/http"
\t"net/url"
\t"os"
\t"strings"
\t"time"

\t"k8s.io/apimachinery/pkg/api/resource"
\tmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
\t"k8s.io/apimachinery/pkg/labels"
\t"k8s.io/metrics/pkg/apis/external_metrics"
\t"sigs.k8s.io/custom-metrics-apiserver/pkg/cmd"
\t"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
\t"sigs.k8s.io/yaml"
)

type rule struct {
\tSeriesQuery  string `json:"seriesQuery"`
\tMetricsQuery string `json:"metricsQuery"`
}

type source struct {
\turl   string
\trules []rule
}

func (s *source) ListAllExternalMetrics() []provider.ExternalMetricInfo {
\tvar found []provider.ExternalMetricInfo
\tfor _, r := range s.rules {
\t\tfound = append(found, provider.ExternalMetricInfo{Metric: r.SeriesQuery})
\t}
\treturn found
}

func (s *source) GetExternalMetric(
\tctx context.Context, namespace string, selector labels.Selector, info provider.ExternalMetricInfo,
) (*external_metrics.ExternalMetricValueList, error) {
\tmatchers := []string{fmt.Sprintf("namespace=%q", namespace)}
\twanted, _ := selector.Requirements()
\tfor _, w := range wanted {
\t\tmatchers = append(matchers, fmt.Sprintf("%s=~%q", w.Key(), strings.Join(w.ValuesUnsorted(), "|")))
\t}
\tfor _, r := range s.rules {
\t\tif r.SeriesQuery == info.Metric {
\t\t\tchosen := strings.Join(matchers, ",")
\t\t\tfilled := strings.NewReplacer("<<.Series>>", info.Metric, "<<.LabelMatchers>>", chosen)
\t\t\treturn s.ask(ctx, info.Metric, filled.Replace(r.MetricsQuery))
\t\t}
\t}
\treturn nil, provider.NewMetricNotFoundError(external_metrics.Resource("externalmetrics"), info.Metric)
}

func (s *source) ask(
\tctx context.Context, name, query string,
) (*external_metrics.ExternalMetricValueList, error) {
\task, err := http.NewRequestWithContext(ctx, "GET", s.url+"/api/v1/query?query="+url.QueryEscape(query), nil)
\tif err != nil {
\t\treturn nil, err
\t}
\tanswer, err := (&http.Client{Timeout: 5 * time.Second}).Do(ask)
\tif err != nil {
\t\treturn nil, err
\t}
\tdefer answer.Body.Close()
\tvar said struct {
\t\tError string
\t\tData  struct{ Result []struct{ Value [2]any } }
\t}
\tif err := json.NewDecoder(answer.Body).Decode(&said); err != nil {
\t\treturn nil, err
\t}
\tif said.Error != "" {
\t\treturn nil, fmt.Errorf("%s: %s", query, said.Error)
\t}
\tlist := &external_metrics.ExternalMetricValueList{}
\tfor _, r := range said.Data.Result {
\t\tvalue, err := resource.ParseQuantity(fmt.Sprint(r.Value[1]))
\t\tif err != nil {
\t\t\treturn nil, fmt.Errorf("%s: %w", query, err)
\t\t}
\t\tlist.Items = append(list.Items, external_metrics.ExternalMetricValue{
\t\t\tMetricName: name, Timestamp: metav1.Now(), Value: value,
\t\t})
\t}
\treturn list, nil
}

func run() error {
\tserver := &cmd.AdapterBase{Name: "external-metrics"}
\tprometheus := server.Flags().String("prometheus-url", "", "where Prometheus answers")
\tconfig := server.Flags().String("config", "", "file of rules, as prometheus-adapter's chart has them")
\tif err := server.Flags().Parse(os.Args); err != nil {
\t\treturn err
\t}
\ttext, err := os.ReadFile(*config)
\tif err != nil {
\t\treturn err
\t}
\tvar values struct {
\t\tRules struct{ External []rule } `json:"rules"`
\t}
\tif err := yaml.Unmarshal(text, &values); err != nil {
\t\treturn err
\t}
\tserver.WithExternalMetrics(&source{*prometheus, values.Rules.External})
\treturn server.Run(context.Background())
}

func main() {
\tif err := run(); err != nil {
\t\tfmt.Fprintln(os.Stderr, err)
\t\tos.Exit(1)
\t}
}
"""
