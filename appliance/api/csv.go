package api

import (
	"encoding/csv"
	"io"
	"strconv"
	"strings"
	"time"
)

// WriteCSV writes the report of a run: a head, then one line for each disk of each task; a task without disks has one line. Text that a
// spreadsheet would take for a formula is marked as text.
func WriteCSV(w io.Writer, r Run) error {
	c := csv.NewWriter(w)
	head := []string{"run", "job", "type", "kind", "run_state", "vm", "vm_id", "host", "stage", "state", "code", "message", "started", "ended", "set",
		"bottleneck", "disk", "reason", "total", "read", "sent", "stored"}
	if err := c.Write(head); err != nil {
		return err
	}
	for _, t := range r.Tasks {
		code, message := "", ""
		if t.Error != nil {
			code, message = t.Error.Code, t.Error.Message
		}
		line := []string{r.ID, r.Job, r.Type, r.Kind, r.State, t.VM, t.VMID, t.Host, t.Stage, t.State, code, message, stamp(t.Started), stamp(t.Ended), t.Set, t.Bottleneck}
		disks := t.Disks
		if len(disks) == 0 {
			disks = []Progress{{}}
		}
		for _, d := range disks {
			full := append(line[:len(line):len(line)], d.Name, d.Reason, number(d.Total), number(d.Read), number(d.Sent), number(d.Stored))
			for i, v := range full {
				if v != "" && strings.ContainsRune("=+-@\t\r", rune(v[0])) {
					full[i] = "'" + v
				}
			}
			if err := c.Write(full); err != nil {
				return err
			}
		}
	}
	c.Flush()
	return c.Error()
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
