package api

import (
	"context"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapeTime bounds what one scrape may ask of the service.
const scrapeTime = 10 * time.Second

// metrics returns the handler of /metrics. Values are taken from the service at each scrape: nothing is counted twice, and
// nothing is lost with a restart that was not lost anyway.
func (a *API) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &serviceCollector{a.o.Service, a.o.Version})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// The metrics' names are stable; base units, no label per set.
var (
	metricBuild       = desc("build_info", "The version that runs.", "version", "go")
	metricUp          = desc("up", "1 when the catalog answers.")
	metricPoolSize    = desc("pool_size_bytes", "Size of the pool's medium.", "pool", "kind")
	metricPoolUsed    = desc("pool_used_bytes", "Bytes the pool's data takes.", "pool", "kind")
	metricPoolFree    = desc("pool_available_bytes", "Bytes left on the pool's medium.", "pool", "kind")
	metricPoolLogical = desc("pool_logical_bytes", "Sum of the sets' virtual sizes.", "pool", "kind")
	metricPoolRatio   = desc("pool_dedup_ratio", "Logical bytes per stored byte.", "pool", "kind")
	metricPoolState   = desc("pool_state", "1 for the state the pool is in.", "pool", "state")
	metricPoolSets    = desc("pool_sets", "Sets in the pool.", "pool", "kind")
	metricAgentUp     = desc("agent_up", "1 while the host's agent is online.", "host")
	metricAgent       = desc("agent_version_info", "The version of the host's agent.", "host", "version")
	metricVMLast      = desc("vm_last_success_timestamp_seconds", "Newest point in time of the VM.", "host", "vm")
	metricVMPoints    = desc("vm_points", "Points in time of the VM.", "host", "vm", "pool")
	metricRunActive   = desc("run_active", "Runs that are not over.")
	metricCert        = desc("cert_expiry_timestamp_seconds", "When the server's certificate expires; it renews itself.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

// serviceCollector turns the service's answers into metrics.
type serviceCollector struct {
	s       Service
	version string
}

// Describe implements prometheus.Collector. It describes nothing: which metrics there are depends on what there is.
func (c *serviceCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *serviceCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(metricBuild, 1, c.version, runtime.Version())
	st, err := c.s.Status(ctx)
	sets, err2 := c.s.Sets(ctx, SetFilter{})
	if err != nil || err2 != nil {
		gauge(metricUp, 0)
		return
	}
	gauge(metricUp, 1)
	gauge(metricRunActive, float64(len(st.Running)))
	gauge(metricCert, float64(st.Expires.Unix()))
	for _, h := range st.Hosts {
		gauge(metricAgentUp, b2f(h.State == HostOnline), h.Name)
		if h.Agent != "" {
			gauge(metricAgent, 1, h.Name, h.Agent)
		}
	}
	for _, p := range st.Pools {
		for _, state := range []string{PoolOpen, PoolOffline} {
			gauge(metricPoolState, b2f(p.State == state), p.Name, state)
		}
		if p.Usage == nil {
			continue
		}
		gauge(metricPoolSize, float64(p.Usage.Size), p.Name, p.Kind)
		gauge(metricPoolUsed, float64(p.Usage.Stored), p.Name, p.Kind)
		gauge(metricPoolFree, float64(p.Usage.Free), p.Name, p.Kind)
		gauge(metricPoolLogical, float64(p.Usage.Logical), p.Name, p.Kind)
		gauge(metricPoolSets, float64(p.Usage.Sets), p.Name, p.Kind)
		gauge(metricPoolRatio, p.Ratio, p.Name, p.Kind)
	}
	type point struct{ host, vm, pool string }
	points, last := map[point]int{}, map[point]time.Time{}
	for _, s := range sets {
		points[point{s.Host, s.VM, s.Pool}]++
		if k := (point{s.Host, s.VM, ""}); s.Time.After(last[k]) {
			last[k] = s.Time
		}
	}
	for k, n := range points {
		gauge(metricVMPoints, float64(n), k.host, k.vm, k.pool)
	}
	for k, t := range last {
		gauge(metricVMLast, float64(t.UnixMilli())/1000, k.host, k.vm)
	}
}

// States of hosts and pools.
const (
	HostOnline  = "online"
	HostOffline = "offline"
	PoolOpen    = "open"
	PoolOffline = "offline"
)

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
