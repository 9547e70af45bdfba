// The tables of the ISAs in this build, and the one in use.
#pragma once

#include "kernels/table.hpp"

namespace pumice {

const KernelTable& kernels() noexcept;

}  // namespace pumice
