// The one error type of the core. Functions are noexcept and return it; Python raises.
#pragma once

namespace pumice {

enum class Status : int {
  kOk = 0,
  kNoMemory,     // a workspace could not be allocated
  kBadArgument,  // a precondition that the binding should have checked
};

}  // namespace pumice
