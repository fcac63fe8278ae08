package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

type (
	// Jobs is the part of Service that is about jobs, schedules and the logs of runs.
	Jobs interface {
		Jobs(ctx context.Context) ([]Job, error)
		Job(ctx context.Context, name string) (Job, error)
		CreateJob(ctx context.Context, s JobSpec) (JobCreated, error)
		SetJob(ctx context.Context, name string, c JobChange) (Job, error)
		// DeleteJob removes a job that is not running. Its sets and runs stay.
		DeleteJob(ctx context.Context, name string) (Job, error)
		// RunJob starts a job now, whatever its schedules and its being disabled say. Busy if it is running.
		RunJob(ctx context.Context, name string, r JobRun) (Run, error)
		// StopJob cancels the job's runs under way and what waits to start.
		StopJob(ctx context.Context, name string) (Job, error)
		PreviewSchedule(ctx context.Context, spec, zone string, n int) (SchedulePreview, error)
		// RunLog returns the lines of a run's log from a number on. It waits for new ones, or the run's end, but not longer than wait.
		RunLog(ctx context.Context, id string, from int, wait time.Duration) (RunLog, error)
	}

	// JobSpec describes a new job.
	JobSpec struct {
		Name         string   `json:"name" minLength:"1" maxLength:"64"`
		Pool         string   `json:"pool" doc:"name or id"`
		VMs          []string `json:"vms,omitempty" maxItems:"10000" doc:"names or ids; kept by id"`
		Hosts        []string `json:"hosts,omitempty" maxItems:"10000" doc:"all virtual machines of these hosts, now and later"`
		Match        []string `json:"match,omitempty" maxItems:"1000" doc:"patterns of names, on any host"`
		Exclude      []string `json:"exclude,omitempty" maxItems:"1000" doc:"names, patterns or ids that are left out"`
		ExcludeDisks []string `json:"exclude_disks,omitempty" maxItems:"1000" doc:"disks that are left out: ids or patterns of file names, for one virtual machine as VM:PATTERN"`
		Type         string   `json:"type,omitempty" enum:"full,incremental,differential" default:"incremental"`
		Schedules    []string `json:"schedules,omitempty" maxItems:"64" doc:"as 'schedule preview' takes them, with a type before it if it is not the job's; now starts the job at once"`
		Zone         string   `json:"zone,omitempty" doc:"time zone of schedules and windows; UTC if empty"`
		Options      []string `json:"options,omitempty" maxItems:"200" doc:"option=value"`
		Disabled     bool     `json:"disabled,omitempty"`
	}

	// JobChange changes a job. Lists that are given replace what was there; options change one by one.
	JobChange struct {
		Pool         *string   `json:"pool,omitempty"`
		AddVMs       []string  `json:"add_vms,omitempty" maxItems:"10000"`
		RemoveVMs    []string  `json:"remove_vms,omitempty" maxItems:"10000"`
		Hosts        *[]string `json:"hosts,omitempty"`
		Match        *[]string `json:"match,omitempty"`
		Exclude      *[]string `json:"exclude,omitempty"`
		ExcludeDisks *[]string `json:"exclude_disks,omitempty"`
		Type         *string   `json:"type,omitempty" enum:"full,incremental,differential"`
		Schedules    *[]string `json:"schedules,omitempty"`
		Zone         *string   `json:"zone,omitempty"`
		Options      []string  `json:"options,omitempty" maxItems:"200"`
		Enabled      *bool     `json:"enabled,omitempty"`
	}

	// JobRun says how a job is run by hand.
	JobRun struct {
		Type   string `json:"type,omitempty" enum:"full,incremental,differential"`
		Failed bool   `json:"failed,omitempty" doc:"only the virtual machines that its last run failed for"`
	}

	// Job is a job as it stands.
	Job struct {
		Name         string            `json:"name"`
		State        string            `json:"state" doc:"running, idle, waiting (for a window or another run), disabled"`
		Enabled      bool              `json:"enabled"`
		Pool         string            `json:"pool"`
		PoolID       string            `json:"pool_id"`
		Type         string            `json:"type"`
		Schedules    []string          `json:"schedules"`
		Zone         string            `json:"zone"`
		VMs          []JobVM           `json:"vms" doc:"named"`
		Hosts        []string          `json:"hosts"`
		Match        []string          `json:"match"`
		Exclude      []string          `json:"exclude"`
		ExcludeDisks []string          `json:"exclude_disks"`
		Options      map[string]string `json:"options" doc:"all, with their defaults"`
		Selected     []JobVM           `json:"selected" doc:"what a run now would back up"`
		Created      time.Time         `json:"created"`
		Next         time.Time         `json:"next,omitzero" doc:"when a schedule starts it next"`
		LastRun      string            `json:"last_run,omitempty"`
		LastResult   string            `json:"last_result,omitempty"`
		LastEnded    time.Time         `json:"last_ended,omitzero"`
		LastGood     time.Time         `json:"last_good,omitzero" doc:"when a run last ended well"`
		Running      []string          `json:"running" doc:"runs under way"`
		LastBegan    time.Time         `json:"last_began,omitzero" doc:"the last run that is over"`
		Totals       JobTotals         `json:"totals" doc:"of all runs since the job was created"`
	}

	// JobTotals is bytes that a job has moved.
	JobTotals struct {
		Read   int64 `json:"read" doc:"by agents"`
		Sent   int64 `json:"sent" doc:"on the wire"`
		Stored int64 `json:"stored" doc:"new in pools"`
	}

	// JobVM is a virtual machine of a job.
	JobVM struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		Host string `json:"host,omitempty"`
		Gone bool   `json:"gone,omitempty" doc:"no host has it any more"`
	}

	// JobCreated is a new job, and its first run if it was to start at once.
	JobCreated struct {
		Job Job  `json:"job"`
		Run *Run `json:"run,omitempty"`
	}

	// SchedulePreview is when a schedule runs next.
	SchedulePreview struct {
		Spec  string      `json:"spec" doc:"as it was understood"`
		Type  string      `json:"type,omitempty"`
		Zone  string      `json:"zone"`
		Times []time.Time `json:"times"`
	}

	// RunLog is a part of a run's log.
	RunLog struct {
		Run   string    `json:"run"`
		State string    `json:"state"`
		Lines []LogLine `json:"lines"`
		Next  int       `json:"next" doc:"the number of the line after these"`
	}

	// LogLine is one line of a run's log.
	LogLine struct {
		Time time.Time `json:"time"`
		Task string    `json:"task,omitempty" doc:"the virtual machine or script"`
		Text string    `json:"text"`
	}
)

type (
	jobChangeIn struct {
		Name string `path:"name"`
		Body JobChange
	}
	jobRunIn struct {
		Name string `path:"name"`
		Body JobRun
	}
	previewIn struct {
		Spec string `query:"spec" required:"true" doc:"a schedule"`
		Zone string `query:"zone" doc:"time zone; UTC if empty"`
		N    int    `query:"n" minimum:"1" maximum:"1000" default:"10"`
	}
	logIn struct {
		ID   string `path:"id"`
		From int    `query:"from" minimum:"0" doc:"number of the first line"`
		Wait int    `query:"wait_ms" minimum:"0" maximum:"30000" doc:"milliseconds to wait for a new line or the run's end"`
	}
	reportIn struct {
		ID string `path:"id"`
	}
)

func (a *API) registerJobs() {
	s := a.o.Service
	route(a, "GET", "/v1/jobs", "List jobs", 200, func(ctx context.Context, _ *none) ([]Job, error) { return list(s.Jobs(ctx)) })
	route(a, "POST", "/v1/jobs", "Create a job", 201, func(ctx context.Context, in *bodyOfType[JobSpec]) (JobCreated, error) {
		return s.CreateJob(ctx, in.Body)
	})
	route(a, "GET", "/v1/jobs/{name}", "Show a job", 200, func(ctx context.Context, in *byName) (Job, error) { return s.Job(ctx, in.Name) })
	route(a, "PATCH", "/v1/jobs/{name}", "Change a job", 200, func(ctx context.Context, in *jobChangeIn) (Job, error) {
		return s.SetJob(ctx, in.Name, in.Body)
	})
	route(a, "DELETE", "/v1/jobs/{name}", "Delete a job; its sets and runs stay", 200, func(ctx context.Context, in *byName) (Job, error) {
		return s.DeleteJob(ctx, in.Name)
	})
	route(a, "POST", "/v1/jobs/{name}/run", "Run a job now", 202, func(ctx context.Context, in *jobRunIn) (Run, error) {
		return s.RunJob(ctx, in.Name, in.Body)
	})
	route(a, "POST", "/v1/jobs/{name}/stop", "Stop what a job is doing", 202, func(ctx context.Context, in *byName) (Job, error) {
		return s.StopJob(ctx, in.Name)
	})
	route(a, "GET", "/v1/schedules/preview", "Say when a schedule runs next", 200, func(ctx context.Context, in *previewIn) (SchedulePreview, error) {
		return s.PreviewSchedule(ctx, in.Spec, in.Zone, in.N)
	})
	route(a, "GET", "/v1/runs/{id}/log", "Show the log of a run, waiting for new lines if asked to", 200, func(ctx context.Context, in *logIn) (RunLog, error) {
		return s.RunLog(ctx, in.ID, in.From, time.Duration(in.Wait)*time.Millisecond)
	})
	huma.Register(a.huma, huma.Operation{
		OperationID: "get-runs-id-report-csv", Method: http.MethodGet, Path: "/v1/runs/{id}/report.csv", Summary: "Report of a run, one line a disk, as CSV",
		Responses: map[string]*huma.Response{"200": {Description: "CSV with a head line", Content: map[string]*huma.MediaType{"text/csv": {}}}},
	}, func(ctx context.Context, in *reportIn) (*huma.StreamResponse, error) {
		r, err := s.Run(ctx, in.ID, 0)
		if err != nil {
			return nil, bodyOf(err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			hc.SetHeader("Content-Type", "text/csv; charset=utf-8")
			_ = WriteCSV(hc.BodyWriter(), r) // the one who asked has gone
		}}, nil
	})
}
