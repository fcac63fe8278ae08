package appliance

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/job"
)

func retentionOfJob(name string) string { return "retention:job:" + name }

func (s *Service) retainDaily(context.Context) time.Time { return time.Time{} }

func (s *Service) retainAfter(context.Context, job.View) {}
