package appliance_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/notify"
)

// get reads a path of the daemon's socket.
func (s *site) get(path string) string {
	s.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.path("data/"+appliance.SocketName))
	}}}
	resp, err := c.Get("http://holdfastd" + path)
	s.ok(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	s.ok(err)
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s %s", path, resp.Status, b)
	}
	return string(b)
}

// promtool runs Prometheus's own checker, which scripts/deps.sh installs.
func promtool(t *testing.T, in string, args ...string) {
	t.Helper()
	cmd := exec.Command("promtool", args...)
	cmd.Dir, cmd.Stdin = "../deploy/monitoring", strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestMetricsAreAllThereAndWellFormed makes a site in which every metric has something to say, and looks at what a scrape gets.
func TestMetricsAreAllThereAndWellFormed(t *testing.T) {
	s := newSite(t)
	s.online("hv1")
	s.vm("hv1", "db", 4<<20)
	s.wait("the VM is listed", func() bool { return len(s.listed()) == 1 })
	_, err := s.svc().AddNotifyTarget(t.Context(), notify.Target{Name: "log", Syslog: &notify.Syslog{Network: "udp", Address: "127.0.0.1:9"}})
	s.ok(err)
	_, err = s.svc().CreateJob(t.Context(), api.JobSpec{Name: "nightly", Pool: "main", Hosts: []string{"hv1"}, Schedules: []string{"daily 22:00"}})
	s.ok(err)
	s.follow(s.svc().RunJob(t.Context(), "nightly", api.JobRun{}))
	verified := s.follow(s.svc().VerifyPool(t.Context(), "main"))
	s.follow(s.svc().CollectPool(t.Context(), "main", false))
	var text string
	series := regexp.MustCompile(`(?m)^(holdfast_[a-z_]+)[{ ]`)
	s.wait("every metric is there", func() bool {
		text = s.get("/metrics")
		there := map[string]bool{}
		for _, m := range series.FindAllStringSubmatch(text, -1) {
			there[m[1]] = true
		}
		for _, name := range api.MetricNames() {
			if !there[name] {
				return false
			}
		}
		return strings.Contains(text, `route="GET /metrics"`) // a scrape is counted when it is over
	})
	for _, line := range []string{`holdfast_vm_protected{host="hv1",vm="db"} 1`, `holdfast_job_last_result{job="nightly",result="done"} 1`, `holdfast_pool_damaged{pool="main"} 0`,
		`holdfast_agent_up{host="hv1"} 1`, `holdfast_vm_points{host="hv1",pool="main",vm="db"} 1`,
		`holdfast_pool_damaged_chunks{pool="main"} 0`, `holdfast_vm_damaged_points{host="hv1",vm="db"} 0`, `holdfast_agent_version_info{host="hv1",version="test"} 1`,
		`holdfast_http_requests_total{code="204",door="agents",route="POST /agent/v1/inventory"}`, `holdfast_http_request_duration_seconds_bucket{door="local",route="GET /metrics",le="60"}`} {
		if !strings.Contains(text, line+"\n") && !strings.Contains(text, line+" ") {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
	// Only what is ours is judged by taste: the runtime's own names are not.
	var ours []string
	for l := range strings.Lines(text) {
		if strings.Contains(l, "holdfast_") {
			ours = append(ours, l)
		}
	}
	promtool(t, strings.Join(ours, ""), "check", "metrics")
	var m api.Monitor
	s.ok(json.Unmarshal([]byte(s.get("/v1/monitor")), &m))
	sets, err := s.svc().Sets(t.Context(), api.SetFilter{})
	s.ok(err)
	if j := m.Jobs[0]; j.Totals != (api.JobTotals{Read: sets[0].Read, Sent: sets[0].Sent, Stored: sets[0].Stored}) || j.Totals.Read == 0 || j.LastEnded.Before(j.LastBegan) || j.LastBegan.IsZero() {
		t.Errorf("%+v, of %+v", j, sets[0])
	}
	if v := m.VMs[0]; !v.Full.Equal(sets[0].Time) || !v.Verified.Equal(verified.Ended) {
		t.Errorf("%+v, of %+v", v, verified)
	}
	if len(m.Pools) != 1 || len(m.VMs) != 1 || len(m.Jobs) != 1 || m.Pools[0].Verify.Done.IsZero() || m.VMs[0].Last.IsZero() || m.Jobs[0].LastResult != "done" {
		t.Errorf("%+v", m)
	}
}

func (s *site) listed() []api.VM {
	s.t.Helper()
	vms, err := s.svc().VMs(s.t.Context())
	s.ok(err)
	return vms
}

// TestRulesAndDashboardNameMetricsThatExist keeps what is shipped for Prometheus and Grafana in step with the metrics.
func TestRulesAndDashboardNameMetricsThatExist(t *testing.T) {
	names := append(api.MetricNames(), "holdfast_up")
	for _, file := range []string{"alerts.yml", "alerts_test.yml", "dashboard.json"} {
		text, err := os.ReadFile("../deploy/monitoring/" + file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`\bholdfast_[a-z_]+`).FindAllString(string(text), -1)
		if len(found) < 10 {
			t.Errorf("%s names only %d metrics", file, len(found))
		}
		for _, name := range found {
			if !slices.Contains(names, name) {
				t.Errorf("%s names %s, which is no metric", file, name)
			}
		}
	}
	var d struct {
		Panels []struct {
			ID      int `json:"id"`
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../deploy/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var exprs strings.Builder
	exprs.WriteString("groups:\n- name: dashboard\n  rules:\n")
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || len(p.Targets) == 0 {
			t.Errorf("panel %d: its id or place is wrong, or it shows nothing", p.ID)
		}
		ids[p.ID] = true
		for _, x := range p.Targets {
			b, err := json.Marshal(x.Expr)
			if err != nil {
				t.Fatal(err)
			}
			exprs.WriteString("  - {record: a:b, labels: {n: x" + string(rune('a'+len(ids))) + "}, expr: " + string(b) + "}\n")
		}
	}
	file := t.TempDir() + "/dashboard.yml"
	if err := os.WriteFile(file, []byte(exprs.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "check", "rules", "--lint=none", file) // its expressions are PromQL
	promtool(t, "", "check", "rules", "alerts.yml")
	promtool(t, "", "test", "rules", "alerts_test.yml")
}
