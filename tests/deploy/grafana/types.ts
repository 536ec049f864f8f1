// What `deploy/grafana/convoy.json` must be, in Grafana's own types: the dashboard, and each panel with the options and
// field configuration of its own kind. A property that none of them knows is an error.
import type { Dashboard, DataQuery, FieldConfig, FieldConfigSource, Panel, RowPanel } from "@grafana/schema";
import type {
  FieldConfig as HeatmapField,
  Options as Heatmap,
} from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type { Options as Stat } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type {
  FieldConfig as TimelineField,
  Options as Timeline,
} from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type {
  FieldConfig as TableField,
  Options as Table,
} from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type {
  FieldConfig as TimeSeriesField,
  Options as TimeSeries,
} from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// A JSON file holds the values of an enum, not its names.
type Json<T> = T extends string ? `${T}` : T extends object ? { [Key in keyof T]: Json<T[Key]> } : T;

interface Query extends DataQuery {
  datasource: { type: "prometheus"; uid: "${datasource}" };
  expr: string;
  legendFormat: string;
  editorMode: "code";
  range: boolean;
  instant: boolean;
  format?: "heatmap" | "table";
}

type Of<Kind extends string, Options, Field> = Json<
  Omit<Panel, "type" | "title" | "description" | "options" | "targets" | "fieldConfig">
> & {
  type: Kind;
  title: string;
  description: string;
  options: Json<Options>;
  targets: Query[];
  fieldConfig: Json<Omit<FieldConfigSource, "defaults">> & {
    defaults: Json<Omit<FieldConfig, "custom">> & { custom?: Json<Field> };
  };
};

interface Annotation {
  name: string;
  datasource: Query["datasource"];
  enable: boolean;
  iconColor: string;
  expr: string;
  titleFormat: string;
}

export type Convoy = Json<Omit<Dashboard, "panels" | "annotations">> & {
  annotations: { list: Annotation[] };
  panels: (
    | Json<RowPanel>
    | Of<"heatmap", Heatmap, HeatmapField>
    | Of<"stat", Stat, Record<string, never>>
    | Of<"state-timeline", Timeline, TimelineField>
    | Of<"table", Table, TableField>
    | Of<"timeseries", TimeSeries, TimeSeriesField>
  )[];
};
