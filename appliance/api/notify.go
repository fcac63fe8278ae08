package api

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/notify"
)

// Notifications is the part of the service that tells people what happened. It is apart from Service, which another assembly may
// implement without it; the routes are there if the service has it. Secrets of targets are masked in every answer; a *** that is sent
// back keeps what is stored.
type Notifications interface {
	NotifyStatus(ctx context.Context) (NotifyStatus, error)
	SetNotify(ctx context.Context, c NotifyChange) (NotifySettings, error)
	NotifyTargets(ctx context.Context) ([]notify.Target, error)
	NotifyTarget(ctx context.Context, name string) (notify.Target, error)
	AddNotifyTarget(ctx context.Context, t notify.Target) (notify.Target, error)
	// SetNotifyTarget replaces a target; the name in the body is ignored.
	SetNotifyTarget(ctx context.Context, name string, t notify.Target) (notify.Target, error)
	DeleteNotifyTarget(ctx context.Context, name string) (notify.Target, error)
	// TestNotifyTarget sends a message now and returns what the target answered.
	TestNotifyTarget(ctx context.Context, name string) (NotifyTested, error)
}

type (
	// NotifySettings is what holds for all targets.
	NotifySettings struct {
		Site   string `json:"site" maxLength:"64" doc:"the appliance's name in messages; empty: the machine's"`
		Zone   string `json:"zone" doc:"time zone of windows, digests and times in texts, like Europe/Berlin; empty: the machine's"`
		Remind string `json:"remind" doc:"an open alarm is told again after so long, like 24h; empty: never"`
		Stale  string `json:"stale" doc:"alarm where a virtual machine that was backed up before has no good point so recent, like 72h; 0: never"`
	}

	// NotifyChange says what to change of NotifySettings; what is not there stays.
	NotifyChange struct {
		Site   *string `json:"site,omitempty" maxLength:"64"`
		Zone   *string `json:"zone,omitempty"`
		Remind *string `json:"remind,omitempty"`
		Stale  *string `json:"stale,omitempty"`
	}

	// NotifyStatus is how telling goes.
	NotifyStatus struct {
		Settings NotifySettings   `json:"settings"`
		Targets  []NotifyDelivery `json:"targets"`
		Alarms   []notify.Alarm   `json:"alarms" doc:"those that are open"`
	}

	// NotifyDelivery is how a target does.
	NotifyDelivery struct {
		Kind     string `json:"kind" doc:"mail, webhook, ntfy, gotify or syslog"`
		Disabled bool   `json:"disabled,omitempty"`
		notify.Status
	}

	// NotifyTested is what came of a test.
	NotifyTested struct {
		Name string    `json:"name"`
		Sent time.Time `json:"sent"`
	}
)

type targetIn struct {
	Name string `path:"name"`
	Body notify.Target
}

func (a *API) registerNotify() {
	s, ok := a.o.Service.(Notifications)
	if !ok {
		return
	}
	route(a, "GET", "/v1/notify", "How telling goes, and what is open", 200, func(ctx context.Context, _ *none) (NotifyStatus, error) { return s.NotifyStatus(ctx) })
	route(a, "PATCH", "/v1/notify", "Change what holds for all targets", 200, func(ctx context.Context, in *bodyOfType[NotifyChange]) (NotifySettings, error) {
		return s.SetNotify(ctx, in.Body)
	})
	route(a, "GET", "/v1/notify/targets", "List notification targets", 200, func(ctx context.Context, _ *none) ([]notify.Target, error) {
		return list(s.NotifyTargets(ctx))
	})
	route(a, "POST", "/v1/notify/targets", "Add a notification target", 201, func(ctx context.Context, in *bodyOfType[notify.Target]) (notify.Target, error) {
		return s.AddNotifyTarget(ctx, in.Body)
	})
	route(a, "GET", "/v1/notify/targets/{name}", "Show a notification target", 200, func(ctx context.Context, in *byName) (notify.Target, error) {
		return s.NotifyTarget(ctx, in.Name)
	})
	route(a, "PUT", "/v1/notify/targets/{name}", "Replace a notification target", 200, func(ctx context.Context, in *targetIn) (notify.Target, error) {
		return s.SetNotifyTarget(ctx, in.Name, in.Body)
	})
	route(a, "DELETE", "/v1/notify/targets/{name}", "Remove a notification target and what waits for it", 200, func(ctx context.Context, in *byName) (notify.Target, error) {
		return s.DeleteNotifyTarget(ctx, in.Name)
	})
	route(a, "POST", "/v1/notify/targets/{name}/test", "Send a test to a target now", 200, func(ctx context.Context, in *byName) (NotifyTested, error) {
		return s.TestNotifyTarget(ctx, in.Name)
	})
}
