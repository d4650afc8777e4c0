// A shared library for symboliser_test to load.

#include <pmr_debug/stack_trace.hpp>

extern "C" pmr_debug::trace_id call_from_plugin(pmr_debug::trace_id (*function)());

namespace {

__attribute__((noinline)) pmr_debug::trace_id plugin_helper(pmr_debug::trace_id (*function)()) {
    const pmr_debug::trace_id id = function();
    asm volatile("");
    return id;
}

}  // namespace

extern "C" pmr_debug::trace_id call_from_plugin(pmr_debug::trace_id (*function)()) {
    const pmr_debug::trace_id id = plugin_helper(function);
    asm volatile("");
    return id;
}
