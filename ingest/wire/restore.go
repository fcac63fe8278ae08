package wire

import "github.com/holdfast-backup/holdfast"

type (
	// A Restore says what a restore task makes of its set. With Replace it takes the place of a VM that is there, under that one's id; with
	// Into the one disk that is granted becomes a disk of a VM that is there.
	Restore struct {
		Dir       string                     `json:"dir,omitempty"`  // absolute folder on the host
		Name      string                     `json:"name,omitempty"` // of the new VM; "": the old one
		KeepID    bool                       `json:"keep_id,omitempty"`
		DiskDirs  map[holdfast.DiskID]string `json:"disk_dirs,omitempty"` // absolute folders for single disks
		Adapters  []holdfast.Adapter         `json:"adapters,omitempty"`  // that the VM gets
		Replace   holdfast.VMID              `json:"replace,omitzero"`
		Into      holdfast.VMID              `json:"into,omitzero"`
		Overwrite holdfast.DiskID            `json:"overwrite,omitzero"` // with Into: the disk that is replaced; none: the disk is added
		Shutdown  bool                       `json:"shutdown,omitempty"` // the VM of Replace or Into may be shut down
		Reference bool                       `json:"reference,omitempty"`
		Start     bool                       `json:"start,omitempty"`
		Earlier   holdfast.TaskID            `json:"earlier,omitzero"` // an earlier try of this task: it is ended and cleaned up first
	}
	// A SurveyRequest asks what a host has and what folders are like, before a restore.
	SurveyRequest struct {
		ID   holdfast.ID `json:"id"`
		Dirs []string    `json:"dirs,omitempty"`
	}
	// A Survey answers, in the Inventory that it asks for.
	Survey struct {
		ID      holdfast.ID `json:"id"`
		Folders []Folder    `json:"folders,omitempty"`
		Error   *Failure    `json:"error,omitempty"`
	}
	// A Folder is one that files are to go to (agent/hv.Folder says what the fields mean).
	Folder struct {
		Dir     string   `json:"dir"`
		Exists  bool     `json:"exists,omitempty"`
		Problem string   `json:"problem,omitempty"`
		Free    int64    `json:"free"`
		Volume  string   `json:"volume,omitempty"`
		Files   []string `json:"files,omitempty"`
	}
)

// MaxSurveyDirs bounds the folders of a SurveyRequest.
const MaxSurveyDirs = 1000
