// Every shape of policy, compiled once.

#include "resources/general_purpose_engine.hpp"

namespace pmr_debug::detail {

#define PMR_DEBUG_SHAPE(THREADS, CHECKS, TRACES, CANARY, FILL, RECYCLE)              \
    template struct general_purpose_engine<code_shape{.threads = threading::THREADS, \
                                                      .checks = CHECKS,              \
                                                      .traces = TRACES,              \
                                                      .canary = CANARY,              \
                                                      .fill = FILL,                  \
                                                      .recycle = RECYCLE}>;
#define PMR_DEBUG_RECYCLE(...) PMR_DEBUG_SHAPE(__VA_ARGS__, false) PMR_DEBUG_SHAPE(__VA_ARGS__, true)
#define PMR_DEBUG_FILL(...) PMR_DEBUG_RECYCLE(__VA_ARGS__, false) PMR_DEBUG_RECYCLE(__VA_ARGS__, true)
#define PMR_DEBUG_CANARY(...) PMR_DEBUG_FILL(__VA_ARGS__, false) PMR_DEBUG_FILL(__VA_ARGS__, true)
#define PMR_DEBUG_TRACES(...) PMR_DEBUG_CANARY(__VA_ARGS__, false) PMR_DEBUG_CANARY(__VA_ARGS__, true)
#define PMR_DEBUG_THREADS(THREADS)  \
    PMR_DEBUG_TRACES(THREADS, true) \
    PMR_DEBUG_RECYCLE(THREADS, false, false, false, false)

PMR_DEBUG_THREADS(unchecked)
PMR_DEBUG_THREADS(single_checked)
PMR_DEBUG_THREADS(synchronized)

}  // namespace pmr_debug::detail
