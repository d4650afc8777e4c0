#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Everything, for those who do not mind.

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/chain.hpp>
#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/failing_resource.hpp>
#include <pmr_debug/fault_handler.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/immortal_proxy.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/logging_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/policy.hpp>
#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>
#include <pmr_debug/statistics.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#endif  // PMR_DEBUG_LANGUAGE
