#include "simt/site.h"

#include <map>
#include <stdexcept>
#include <string_view>

#include "simt/options.h"

namespace r21d::simt {
namespace {

struct OperationRow {
  const char* name;
  std::vector<Perturbation> perturbations;
};

// In the order of Operation.
const std::vector<OperationRow>& operation_rows() {
  static const std::vector<OperationRow> rows = {
      {"sync_threads", {Perturbation::kRemoved}},
      {"sync_warp", {Perturbation::kRemoved}},
      {"sync_named", {Perturbation::kRemoved}},
      {"arrive_named", {Perturbation::kRemoved}},
      {"cp_async_commit", {Perturbation::kRemoved}},
      {"cp_async_wait", {Perturbation::kRemoved, Perturbation::kOneLater}},
      {"stage", {Perturbation::kWrongStage}},
      {"below", {Perturbation::kOneMore, Perturbation::kOneLess}},
      {"shuffle", {}},
      {"shuffle_xor", {}},
      {"shuffle_down", {}},
      {"ballot", {}},
      {"ldmatrix_x4", {}},
      {"ldmatrix_x2", {}},
      {"ldmatrix_x4_transposed", {}},
      {"mma_m16n8k16<Bfloat16>", {}},
      {"mma_m16n8k16<Float16>", {}},
  };
  return rows;
}

// In the order of Perturbation.
constexpr const char* kPerturbationNames[] = {
    "none", "removed", "one later", "wrong stage", "one more", "one less"};

std::vector<SiteRecord*>& records() {
  static std::vector<SiteRecord*> all;
  return all;
}

Options& current_options() {
  static Options current;
  return current;
}

std::string short_file(std::string_view file) {
  const size_t at = file.rfind("csrc/");
  return std::string(at == std::string_view::npos ? file : file.substr(at + 5));
}

std::vector<Operation> operations_of(uint32_t bits) {
  std::vector<Operation> found;
  for (size_t i = 0; i < operation_rows().size(); ++i) {
    if ((bits >> i & 1u) != 0) {
      found.push_back(static_cast<Operation>(i));
    }
  }
  return found;
}

void perturb(SiteRecord& record) {
  const Options& now = options();
  const bool chosen = now.perturbation != Perturbation::kNone && site_id(record) == now.site;
  record.active = chosen ? now.perturbation : Perturbation::kNone;
}

}  // namespace

const char* operation_name(Operation operation) {
  return operation_rows()[static_cast<size_t>(operation)].name;
}

const char* perturbation_name(Perturbation perturbation) {
  return kPerturbationNames[static_cast<size_t>(perturbation)];
}

Perturbation perturbation_of(const std::string& name) {
  std::string known;
  for (size_t i = 1; i < std::size(kPerturbationNames); ++i) {
    if (name == kPerturbationNames[i]) {
      return static_cast<Perturbation>(i);
    }
    known += std::string(known.empty() ? "" : ", ") + kPerturbationNames[i];
  }
  throw std::invalid_argument("perturbation '" + name + "' is not one of " + known);
}

std::string site_id(const SiteRecord& record) {
  return short_file(record.file) + ":" + std::to_string(record.line) + " " + record.name;
}

std::string place(const std::source_location& where) {
  return short_file(where.file_name()) + ":" + std::to_string(where.line());
}

std::vector<SiteInfo> sites() {
  std::map<std::string, SiteInfo> by_id;
  std::map<std::string, uint32_t> bits;
  for (const SiteRecord* record : records()) {
    const std::string id = site_id(*record);
    SiteInfo& info = by_id.try_emplace(id, SiteInfo{id, record->name, {}, {}, 0}).first->second;
    info.executed += record->executed;
    bits[id] |= record->operations;
  }
  std::vector<SiteInfo> all;
  for (auto& [id, info] : by_id) {
    info.operations = operations_of(bits[id]);
    for (const Operation operation : info.operations) {
      for (const Perturbation p : operation_rows()[static_cast<size_t>(operation)].perturbations) {
        info.perturbations.push_back(p);
      }
    }
    all.push_back(info);
  }
  return all;
}

void reset_sites() {
  for (SiteRecord* record : records()) {
    record->executed = 0;
    perturb(*record);
  }
}

void register_site(SiteRecord& record, Operation operation) {
  if (record.operations == 0) {
    records().push_back(&record);
    perturb(record);
  }
  record.operations |= 1u << static_cast<int>(operation);
}

const Options& options() {
  return current_options();
}

void set_options(const Options& wanted) {
  for (const SiteInfo& info : sites()) {
    if (info.id != wanted.site || wanted.perturbation == Perturbation::kNone) {
      continue;
    }
    bool takes = false;
    for (const Perturbation p : info.perturbations) {
      takes = takes || p == wanted.perturbation;
    }
    if (!takes) {
      throw std::invalid_argument(
          "site '" + info.id + "' cannot be perturbed by '" +
          perturbation_name(wanted.perturbation) + "'");
    }
  }
  current_options() = wanted;
}

}  // namespace r21d::simt
