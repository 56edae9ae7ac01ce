// Sites: the places in kernels where threads synchronise, copy or choose a stage. Each can be
// perturbed at run time, one at a time, to show that the tests would notice.
#pragma once

#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace r21d::simt {

enum class Operation : uint8_t {
  kSyncThreads,
  kSyncWarp,
  kSyncNamed,
  kArriveNamed,
  kCommit,
  kWait,
  kStage,
  kBelow,
  kShuffle,
  kShuffleXor,
  kShuffleDown,
  kBallot,
  kLdmatrixX4,
  kLdmatrixX2,
  kLdmatrixX4Transposed,
  kMmaBfloat16,
  kMmaFloat16,
};

// As the instruction is called in ptx.cuh.
const char* operation_name(Operation);

enum class Perturbation : uint8_t {
  kNone,
  kRemoved,     // a barrier, an arrival or a commit is left out
  kOneLater,    // a wait lets one more group be under way
  kWrongStage,  // the next stage is taken
  kOneMore,     // a bound is one too high
  kOneLess,     // a bound is one too low
};

const char* perturbation_name(Perturbation);

// Throws std::invalid_argument where there is none of this name.
Perturbation perturbation_of(const std::string& name);

// One expansion of R21D_SITE; templates have one an instantiation, with the same id.
struct SiteRecord {
  constexpr SiteRecord(const char* site_name, const char* file_name, int line_number)
      : name(site_name), file(file_name), line(line_number) {
  }

  const char* name;
  const char* file;
  int line;
  uint32_t operations = 0;  // a bit for each Operation that used it; known once one did
  Perturbation active = Perturbation::kNone;
  uint64_t executed = 0;  // by threads, in the last launch
};

// "file:line name", with the file below csrc.
std::string site_id(const SiteRecord&);

// "file:line", with the file below csrc.
std::string place(const std::source_location&);

// What is known of the sites that any launch so far reached, by id.
struct SiteInfo {
  std::string id;
  std::string name;
  std::vector<Operation> operations;
  std::vector<Perturbation> perturbations;  // those that change something here
  uint64_t executed;                        // by threads, in the last launch
};

std::vector<SiteInfo> sites();

// Sets all counts to zero and puts the perturbation of options() in force.
void reset_sites();

// A record is used by an operation for the first time.
void register_site(SiteRecord&, Operation);

// Counts an execution; what is to be perturbed there.
inline Perturbation enter(SiteRecord& record, Operation operation) {
  if ((record.operations >> static_cast<int>(operation) & 1u) == 0) [[unlikely]] {
    register_site(record, operation);
  }
  ++record.executed;
  return record.active;
}

}  // namespace r21d::simt

namespace r21d::ptx {

struct Site {
  simt::SiteRecord* record;
};

}  // namespace r21d::ptx

#define R21D_SITE(name)                                                         \
  ([] {                                                                         \
    static constinit ::r21d::simt::SiteRecord record{name, __FILE__, __LINE__}; \
    return ::r21d::ptx::Site{&record};                                          \
  }())
