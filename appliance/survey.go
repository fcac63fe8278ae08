package appliance

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// surveyWait is how long a host may take to say what it has.
const surveyWait = 20 * time.Second

// surveys are questions to hosts that are under way.
type surveys struct {
	mu   sync.Mutex
	open map[holdfast.ID]question
}

type question struct {
	host   holdfast.HostID
	answer chan wire.Inventory // room for one
}

// answer takes an agent's answer; one that nobody waits for, or that another host was asked, is passed over.
func (s *surveys) answer(host holdfast.HostID, inv wire.Inventory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, ok := s.open[inv.Survey.ID]
	if !ok || q.host != host || len(inv.Survey.Folders) > wire.MaxSurveyDirs {
		return
	}
	delete(s.open, inv.Survey.ID)
	q.answer <- inv
}

// survey asks a host what it has and what folders are like, now.
func (d *Daemon) survey(ctx context.Context, host holdfast.HostID, dirs []string) (wire.Inventory, error) {
	if len(dirs) > wire.MaxSurveyDirs {
		return wire.Inventory{}, holdfast.Errorf(holdfast.Invalid, "ask host", "%d folders; at most %d are allowed", len(dirs), wire.MaxSurveyDirs)
	}
	q, id := question{host, make(chan wire.Inventory, 1)}, holdfast.NewID()
	s := &d.surveys
	s.mu.Lock()
	if s.open == nil {
		s.open = map[holdfast.ID]question{}
	}
	s.open[id] = q
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.open, id)
		s.mu.Unlock()
	}()
	if err := d.jobs.Ask(host, wire.Notice{Survey: &wire.SurveyRequest{ID: id, Dirs: dirs}}); err != nil {
		return wire.Inventory{}, err
	}
	late, stop := d.c.Clock.After(surveyWait)
	defer stop()
	select {
	case inv := <-q.answer:
		if f := inv.Survey.Error; f != nil {
			return inv, f.AsError()
		}
		return inv, nil
	case <-late:
		return wire.Inventory{}, holdfast.Errorf(holdfast.Offline, "ask host", "its agent did not answer within %v", surveyWait).
			Advise("look at the agent's log; 'holdfast host list' shows its version")
	case <-ctx.Done():
		return wire.Inventory{}, context.Cause(ctx)
	}
}
