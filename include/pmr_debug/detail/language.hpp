#pragma once

/// \file
/// The language that the headers are written in. Each public header has its contents below `PMR_DEBUG_LANGUAGE`, so
/// that an older language gets one error that says so, and no others.

#if defined(__cplusplus) && __cplusplus >= 202002L
#define PMR_DEBUG_LANGUAGE 1
#else
#define PMR_DEBUG_LANGUAGE 0
#error pmr_debug needs C++20: compile with -std=c++20 or newer
#endif
