package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// TestWhatNeedsNoDaemonAsksNone previews schedules and decides about imagined points where no daemon is.
func TestWhatNeedsNoDaemonAsksNone(t *testing.T) {
	alone := func(in string, args ...string) (int, string, string) {
		var out, errw bytes.Buffer
		a := &app{in: strings.NewReader(in), out: &out, errw: &errw}
		return a.main(t.Context(), append(args, "--data", t.TempDir())), out.String(), errw.String()
	}
	var p api.SchedulePreview
	code, out, errw := alone("", "schedule", "preview", "full: weekly 22:00 on sun", "3", "--zone", "Europe/Berlin", "--json")
	if err := json.Unmarshal([]byte(out), &p); code != cli.OK || err != nil || len(p.Times) != 3 || p.Type != "full" || p.Zone != "Europe/Berlin" {
		t.Fatalf("exit %d, %v\n%s%s", code, err, out, errw)
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range p.Times {
		if x = x.In(berlin); x.Weekday() != time.Sunday || x.Hour() != 22 || x.Minute() != 0 {
			t.Errorf("%v", x)
		}
	}
	for _, args := range [][]string{{"schedule", "preview", "sometimes"}, {"schedule", "preview", "daily 22:00", "--zone", "Nowhere"}} {
		if code, _, errw := alone("", args...); code != cli.Usage {
			t.Errorf("%v: exit %d\n%s", args, code, errw)
		}
	}

	vm := holdfast.NewID()
	var points []string
	for i := range 40 {
		points = append(points, fmt.Sprintf(`{"set":%q,"vm":%q,"vm_name":"db","time":%q,"state":"good","unique":1048576}`, holdfast.NewID(), vm,
			time.Date(2026, 6, 1, 22, 0, 0, 0, time.UTC).AddDate(0, 0, -i).Format(time.RFC3339)))
	}
	timeline := "[" + strings.Join(points, ",") + "]"
	var r api.RetentionReport
	code, out, errw = alone(timeline, "retention", "simulate", "--timeline", "-", "--policy", "days=30", "--now", "2026-06-01T22:00:00Z", "--json")
	if err := json.Unmarshal([]byte(out), &r); code != cli.OK || err != nil || r.Kept != 31 || r.Removed != 9 || r.Frees != 9<<20 {
		t.Errorf("exit %d, %v\n%s%s", code, err, out, errw)
	}
	if code, _, errw := alone(timeline, "retention", "simulate", "--timeline", "-"); code != cli.Usage || !strings.Contains(errw, "--policy") {
		t.Errorf("without a policy: exit %d\n%s", code, errw)
	}
	if code, _, _ := alone("", "retention", "simulate", "--pool", "main"); code != cli.Unreachable {
		t.Errorf("of a real pool: exit %d", code)
	}
}
