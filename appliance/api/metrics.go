package api

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-backup/holdfast"
)

// scrapeTime bounds what one scrape may ask of the service.
const scrapeTime = 10 * time.Second

// metrics returns the handler of /metrics. Values are taken from the service at each scrape: nothing is counted twice, and
// nothing is lost with a restart that was not lost anyway.
func (a *API) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &serviceCollector{a.o.Service, a.o.Version},
		a.requests.count, a.requests.took)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// metricNames are the names that desc was called with.
var metricNames []string

// The metrics' names are stable; base units, no label per set.
var (
	metricBuild       = desc("build_info", "The version that runs.", "version", "go")
	metricUp          = desc("up", "1 when the catalog answers.")
	metricPoolSize    = desc("pool_size_bytes", "Size of the pool: its quota or its medium.", "pool", "kind")
	metricPoolUsed    = desc("pool_used_bytes", "Bytes the pool's data takes.", "pool", "kind")
	metricPoolFree    = desc("pool_available_bytes", "Bytes left for the pool.", "pool", "kind")
	metricPoolFilled  = desc("pool_filled_ratio", "How full the pool is, from 0 to 1, by its quota or its medium.", "pool", "kind")
	metricPoolLogical = desc("pool_logical_bytes", "Sum of the sets' virtual sizes.", "pool", "kind")
	metricPoolRatio   = desc("pool_dedup_ratio", "Logical bytes per stored byte.", "pool", "kind")
	metricPoolState   = desc("pool_state", "1 for the state the pool is in.", "pool", "state")
	metricPoolSets    = desc("pool_sets", "Sets in the pool.", "pool", "kind")
	metricPoolDamaged = desc("pool_damaged", "1 when reading found damage and no later verify found none.", "pool")
	metricPoolChunks  = desc("pool_damaged_chunks", "Chunks and objects that the last verify of the pool found damaged.", "pool")
	metricPoolMaint   = desc("pool_maintenance", "1 while the pool takes no new backups.", "pool")
	metricPoolCreated = desc("pool_created_timestamp_seconds", "When the pool was made.", "pool")
	metricVerifyStart = desc("pool_verify_last_start_timestamp_seconds", "When the last verify of the pool began; absent before the first.", "pool")
	metricVerifyDone  = desc("pool_verify_last_success_timestamp_seconds", "When the last verify that found no damage ended; absent before the first.", "pool")
	metricGCStart     = desc("pool_gc_last_start_timestamp_seconds", "When the last collect of the pool began; absent before the first.", "pool")
	metricGCDone      = desc("pool_gc_last_success_timestamp_seconds", "When the last collect that ended well ended; absent before the first.", "pool")
	metricGCFreed     = desc("pool_gc_freed_bytes_total", "Bytes that collects gave back.", "pool")
	metricAgentUp     = desc("agent_up", "1 while the host's agent is online.", "host")
	metricAgentSeen   = desc("agent_last_seen_timestamp_seconds", "When the agent was last there; absent before the first time.", "host")
	metricAgent       = desc("agent_version_info", "The version of the host's agent.", "host", "version")
	metricVMLast      = desc("vm_last_success_timestamp_seconds", "Newest point in time of the VM; absent without one.", "host", "vm")
	metricVMFull      = desc("vm_last_full_timestamp_seconds", "Newest point in time of the VM for which everything was read; absent without one.", "host", "vm")
	metricVMVerified  = desc("vm_last_verify_success_timestamp_seconds", "When a point in time of the VM was last read back and was right; absent before the first time.", "host", "vm")
	metricVMDamaged   = desc("vm_damaged_points", "Points in time of the VM in which damage was found.", "host", "vm")
	metricVMPoints    = desc("vm_points", "Points in time of the VM.", "host", "vm", "pool")
	metricVMProtected = desc("vm_protected", "1 when a job that is enabled backs the VM up.", "host", "vm")
	metricJobEnabled  = desc("job_enabled", "1 when the job's schedules start it.", "job")
	metricJobResult   = desc("job_last_result", "1 for how the job's last run ended.", "job", "result")
	metricJobEnded    = desc("job_last_end_timestamp_seconds", "When the job's last run ended; absent before the first.", "job")
	metricJobGood     = desc("job_last_success_timestamp_seconds", "When a run of the job last ended well; absent before the first.", "job")
	metricJobTook     = desc("job_last_duration_seconds", "How long the job's last run took; absent before the first.", "job")
	metricJobBytes    = desc("job_bytes_total", "Bytes that the job's runs have read at the source, sent, and stored.", "job", "stage")
	metricJobNext     = desc("job_next_run_timestamp_seconds", "When a schedule starts the job next; absent without one.", "job")
	metricRunActive   = desc("run_active", "Runs that are not over.")
	metricAlarms      = desc("alarms", "Alarms that are open.", "severity")
	metricTold        = desc("notification_queue", "Messages that wait for a notification target.", "target")
	metricTellFails   = desc("notification_failing", "1 when the last attempt to reach the target failed.", "target")
	metricCert        = desc("cert_expiry_timestamp_seconds", "When the server's certificate expires; it renews itself.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	metricNames = append(metricNames, "holdfast_"+name)
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

// MetricNames lists what /metrics can have, beside the runtime's own.
func MetricNames() []string {
	return append(slices.Clone(metricNames), "holdfast_http_requests_total", "holdfast_http_request_duration_seconds_bucket",
		"holdfast_http_request_duration_seconds_sum", "holdfast_http_request_duration_seconds_count")
}

// serviceCollector turns the service's answers into metrics.
type serviceCollector struct {
	s       Service
	version string
}

// Describe implements prometheus.Collector. It describes nothing: which metrics there are depends on what there is.
func (c *serviceCollector) Describe(chan<- *prometheus.Desc) {}

// gauges writes one sample after the other.
type gauges chan<- prometheus.Metric

func (g gauges) set(d *prometheus.Desc, v float64, labels ...string) {
	g <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// at writes a moment, and nothing for none.
func (g gauges) at(d *prometheus.Desc, t time.Time, labels ...string) {
	if !t.IsZero() {
		g.set(d, float64(t.UnixMilli())/1000, labels...)
	}
}

// Collect implements prometheus.Collector.
func (c *serviceCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	g := gauges(out)
	g.set(metricBuild, 1, c.version, runtime.Version())
	s, ok := c.s.(Monitors)
	if !ok {
		g.set(metricUp, 0)
		return
	}
	m, err := s.Monitor(ctx)
	g.set(metricUp, b2f(err == nil))
	if err != nil {
		return
	}
	g.set(metricRunActive, float64(m.Running))
	g.at(metricCert, m.Expires)
	for _, h := range m.Hosts {
		g.set(metricAgentUp, b2f(h.State == HostOnline), h.Name)
		g.at(metricAgentSeen, h.Seen, h.Name)
		if h.Agent != "" {
			g.set(metricAgent, 1, h.Name, h.Agent)
		}
	}
	for _, p := range m.Pools {
		g.pool(p)
	}
	g.vms(m.VMs)
	g.jobs(m.Jobs)
	count := map[string]int{}
	for _, a := range m.Alarms {
		count[a.Severity]++
	}
	for _, s := range []holdfast.Severity{holdfast.Info, holdfast.Warning, holdfast.Alarm} {
		g.set(metricAlarms, float64(count[s.String()]), s.String())
	}
	for _, t := range m.Targets {
		g.set(metricTold, float64(t.Queued), t.Name)
		g.set(metricTellFails, b2f(t.Error != ""), t.Name)
	}
}

func (g gauges) pool(p MonitorPool) {
	for _, state := range []string{PoolOpen, PoolOffline} {
		g.set(metricPoolState, b2f(p.State == state), p.Name, state)
	}
	g.set(metricPoolDamaged, b2f(p.Damaged), p.Name)
	g.set(metricPoolChunks, float64(p.DamagedChunks), p.Name)
	g.set(metricPoolMaint, b2f(p.Maintenance), p.Name)
	g.at(metricPoolCreated, p.Created, p.Name)
	g.at(metricVerifyStart, p.Verify.Started, p.Name)
	g.at(metricVerifyDone, p.Verify.Done, p.Name)
	g.at(metricGCStart, p.Collect.Started, p.Name)
	g.at(metricGCDone, p.Collect.Done, p.Name)
	g <- prometheus.MustNewConstMetric(metricGCFreed, prometheus.CounterValue, float64(p.Freed), p.Name)
	if p.State != PoolOpen {
		return
	}
	g.set(metricPoolUsed, float64(p.Used), p.Name, p.Kind)
	g.set(metricPoolLogical, float64(p.Logical), p.Name, p.Kind)
	g.set(metricPoolSets, float64(p.Sets), p.Name, p.Kind)
	g.set(metricPoolRatio, p.Ratio, p.Name, p.Kind)
	g.set(metricPoolFilled, p.Filled, p.Name, p.Kind)
	if p.Size > 0 { // a bucket without a quota has neither
		g.set(metricPoolSize, float64(p.Size), p.Name, p.Kind)
		g.set(metricPoolFree, float64(p.Free), p.Name, p.Kind)
	}
}

// vms writes VMs by host and name; what several with the same name have is added up, since a metric is there once.
func (g gauges) vms(vms []MonitorVM) {
	type name struct{ host, vm string }
	sum := map[name]MonitorVM{}
	for _, v := range vms {
		k := name{v.Host, v.Name}
		x, ok := sum[k]
		if !ok {
			x.Points = map[string]int{}
		}
		for pool, n := range v.Points {
			x.Points[pool] += n
		}
		for _, t := range []struct {
			to   *time.Time
			from time.Time
		}{{&x.Last, v.Last}, {&x.Full, v.Full}, {&x.Verified, v.Verified}} {
			if t.from.After(*t.to) {
				*t.to = t.from
			}
		}
		x.Protected = x.Protected || v.Protected
		x.Damaged += v.Damaged
		sum[k] = x
	}
	for k, x := range sum {
		for pool, n := range x.Points {
			g.set(metricVMPoints, float64(n), k.host, k.vm, pool)
		}
		g.set(metricVMProtected, b2f(x.Protected), k.host, k.vm)
		g.set(metricVMDamaged, float64(x.Damaged), k.host, k.vm)
		g.at(metricVMLast, x.Last, k.host, k.vm)
		g.at(metricVMFull, x.Full, k.host, k.vm)
		g.at(metricVMVerified, x.Verified, k.host, k.vm)
	}
}

func (g gauges) jobs(jobs []MonitorJob) {
	for _, j := range jobs {
		g.set(metricJobEnabled, b2f(j.Enabled), j.Name)
		for _, r := range []string{StateDone, StatePartial, StateFailed, StateCancelled} {
			g.set(metricJobResult, b2f(j.LastResult == r), j.Name, r)
		}
		g.at(metricJobEnded, j.LastEnded, j.Name)
		g.at(metricJobGood, j.LastGood, j.Name)
		g.at(metricJobNext, j.Next, j.Name)
		if took := j.LastEnded.Sub(j.LastBegan); !j.LastBegan.IsZero() && took >= 0 {
			g.set(metricJobTook, took.Seconds(), j.Name)
		}
		for stage, n := range map[string]int64{"read": j.Totals.Read, "sent": j.Totals.Sent, "stored": j.Totals.Stored} {
			g <- prometheus.MustNewConstMetric(metricJobBytes, prometheus.CounterValue, float64(n), j.Name, stage)
		}
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
